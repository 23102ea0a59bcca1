"""The table on the terminal and `results/latest.json`."""

import itertools
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from .frame import Absent, Figure, Outcome
from .machine import Machine, mood

LATEST = Path(__file__).parent / "results" / "latest.json"
METHOD = (
    "Contestants of a row run in interleaved blocks, in turning order; a value is the median over blocks, a "
    "ratio the median over rounds of subject / other in that round, with its least and greatest."
)


class Line(Figure, kw_only=True, omit_defaults=False):
    """A figure as it is written: every field of the table is there, null where it does not apply."""

    group: str


class Results(msgspec.Struct, kw_only=True):
    """The whole file. A run of some groups replaces those; the others stay, with their machine."""

    method: str
    machines: dict[str, Machine]
    rows: list[Line]
    absent: dict[str, list[Absent]]


def lines(group: str, outcome: Outcome) -> list[Line]:
    """The figures of a row, tagged with their group."""
    return [Line(group=group, **msgspec.structs.asdict(figure)) for figure in outcome.figures]


def write(
    machine: Machine, measured: list[Line], absent: dict[str, list[Absent]], path: Path = LATEST
) -> None:
    """Merges this run's groups into the file."""
    groups = set(absent)
    old = msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else None
    results = Results(
        method=METHOD,
        machines=(old.machines if old else {}) | dict.fromkeys(groups, machine),
        rows=[line for line in (old.rows if old else []) if line.group not in groups] + measured,
        absent=(old.absent if old else {}) | absent,
    )
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    temporary.replace(path)


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


WIDTHS = (28, 10, 5, 9, 17, 26, 10, 6)
TITLES = ("", "value", "", "ratio", "least-greatest", "against", "goal", "")


def console() -> Console:
    """As wide as the table where the output is no terminal."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=sum(WIDTHS) + 2 * len(WIDTHS))


def _verdict(holds: bool | None) -> str:
    return "" if holds is None else "[green]holds[/]" if holds else "[red]misses[/]"


def _cells(line: Line) -> tuple[str, ...]:
    row, _, who = line.name.partition(": ")
    spread = (
        "" if line.least is None or line.greatest is None else f"{number(line.least)}-{number(line.greatest)}"
    )
    ratio = "" if line.ratio is None else f"{number(line.ratio)} x"
    cells = (who or row, number(line.value), line.unit, ratio, spread, line.against or "", line.goal or "")
    return *cells, _verdict(line.holds)


def _table(group: list[Line]) -> Table:
    """The lines of one row, in columns as wide as every other row's."""
    place = f" [dim]({group[0].placement})[/]" if group[0].placement else ""
    title = f"[bold]{group[0].name.partition(': ')[0]}[/]{place}"
    table = Table(
        box=None, pad_edge=False, title=title, title_justify="left", title_style="", header_style="dim"
    )
    for index, (width, text) in enumerate(zip(WIDTHS, TITLES, strict=True)):
        table.add_column(
            text, width=width, justify="right" if index in (1, 3, 4) else "left", overflow="fold"
        )
    for line in group:
        table.add_row(*_cells(line))
    return table


def show(out: Console, machine: Machine, measured: list[Line], absent: dict[str, list[Absent]]) -> None:
    """Prints the table, what did not run and why, and the machine's mood."""
    for _, group in itertools.groupby(measured, lambda line: line.name.partition(": ")[0]):
        lines = list(group)
        out.print(_table(lines))
        if lines[0].note:
            out.print(f"[dim]{lines[0].note}[/]", highlight=False)
        out.print()
    for name, reasons in absent.items():
        for missing in reasons:
            out.print(f"[yellow]not run[/] {name}: {missing.name}: {missing.reason}", highlight=False)
    out.print(mood(machine.pulses), highlight=False)
    load = f"{machine.load_at_start[0]:.2f} at the start, {machine.load_at_end[0]:.2f} at the end"
    software = f"Linux {machine.kernel}, Python {machine.python}"
    out.print(f"{machine.cpu}, {machine.cores} cores, {software}; load {load}.", highlight=False)
