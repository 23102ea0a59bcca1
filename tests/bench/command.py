"""`run.py`: picks rows, runs them, reports."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import (
    extras,
    flow_rows,
    ipc_rows,
    machine,
    private_rows,
    record_rows,
    report,
    start_rows,
    state_rows,
    swap_rows,
)
from .frame import Absent, Row, run

GROUPS: dict[str, Callable[[Path], list[Row]]] = {
    "ipc": ipc_rows.rows,
    "state": state_rows.rows,
    "flow": flow_rows.rows,
    "private": private_rows.rows,
    "record": record_rows.rows,
    "start": start_rows.rows,
    "swap": swap_rows.rows,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description="Measures Atoll beside its peers and floors, in one run."
    )
    parser.add_argument(
        "--only",
        default="",
        help=f"groups, comma-separated: {', '.join(GROUPS)}; or words a row's name contains",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="rounds a row, as a multiple of its own number (at least 3 are run)",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        help="folder for stores and sockets (a new temporary one); figures are its disk's",
    )
    parser.add_argument("--no-write", action="store_true", help="leave results/latest.json as it is")
    parser.add_argument("--list", action="store_true", help="print the rows and end")
    parser.add_argument(
        "--install", action="store_true", help="install the peers' packages beside the benchmark, then end"
    )
    return parser.parse_args()


def _chosen(only: str, scratch: Path) -> list[Row]:
    """Rows of the named groups; a word that is no group picks rows whose name contains it.

    Raises SystemExit if nothing matches.
    """
    words = [word.strip() for word in only.split(",") if word.strip()]
    rows = [row for build in GROUPS.values() for row in build(scratch)]
    if not words:
        return rows
    chosen = [
        row
        for row in rows
        if any(word == row.group or (word not in GROUPS and word in row.name) for word in words)
    ]
    if not chosen and not set(words) & set(GROUPS):
        raise SystemExit(
            f"no group or row matches {only!r}; groups are {', '.join(GROUPS)}; --list shows the rows"
        )
    return chosen


def main() -> None:
    arguments = _arguments()
    if arguments.install:
        extras.install()
        return
    # So that the peers' servers are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.scratch) as folder:
        # Servers of other users (PostgreSQL's) get to their own folder through this one.
        os.chmod(folder, 0o711)
        rows = _chosen(arguments.only, Path(folder))
        if arguments.list:
            for row in rows:
                print(f"{row.group}: {row.name}")
            return
        _measure(rows, Path(folder), arguments.scale, keep=arguments.no_write)


def _measure(rows: list[Row], scratch: Path, scale: float, keep: bool) -> None:
    console = report.console()
    described = machine.describe(scratch)
    measured: list[report.Line] = []
    absent: dict[str, list[Absent]] = {row.group: [] for row in rows}
    for row in rows:
        if felt := machine.pulse(row.name):
            described.pulses.append(felt)
        console.print(f"[dim]{row.group}: {row.name}[/]", highlight=False)
        outcome = run(row, scale)
        measured += report.lines(row.group, outcome)
        absent[row.group] += outcome.absent
    described.load_at_end = os.getloadavg()
    if not keep:
        report.write(described, measured, absent)
    report.show(console, described, measured, absent)
