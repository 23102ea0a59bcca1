"""`atoll top`: rates are differences between two looks at the same process; a new process starts anew."""

import sys
import time
from collections.abc import Iterator

from msgspec import Struct
from rich.live import Live

from atoll.ipc.system.kernel import Kernel, ProcessRow

from . import printing
from .printing import Column


class Load(Struct, frozen=True, kw_only=True):
    """What one server did between two looks."""

    server: str
    state: str
    pid: int
    level: str
    calls: float
    """A second."""
    cpu: float
    """Cores in use."""
    memory: int
    restarts: int


LOADS: list[Column[Load]] = [
    Column("SERVER", lambda row: row.server),
    Column("STATE", lambda row: row.state),
    Column("PID", lambda row: row.pid or "-", right=True),
    Column("LEVEL", lambda row: row.level, spare=1),
    Column("CALLS/S", lambda row: f"{row.calls:,.0f}", right=True),
    Column("CPU", lambda row: f"{row.cpu:.0%}", right=True),
    Column("MIB", lambda row: f"{row.memory / (1 << 20):.1f}", right=True),
    Column("RESTARTS", lambda row: row.restarts, right=True, spare=2),
]


def load(before: ProcessRow | None, now: ProcessRow, seconds: float) -> Load:
    """What a server did between two rows; nothing is known of a process that was not there before."""
    same = before is not None and before.pid == now.pid and before.started == now.started
    calls = (now.calls - before.calls) / seconds if same and before else 0.0
    cpu = (now.cpu - before.cpu) / seconds if same and before else 0.0
    return Load(
        server=now.server,
        state=now.state,
        pid=now.pid,
        level=now.level,
        calls=calls,
        cpu=cpu,
        memory=now.memory,
        restarts=now.restarts,
    )


def looks(kernel: Kernel, every: float, count: int) -> Iterator[list[Load]]:
    """A list of loads each `every` seconds, `count` times, or without end for 0."""
    before = {row.server: row for row in kernel.ps.now()}
    then = time.monotonic()
    number = 0
    while not count or number < count:
        time.sleep(every)
        rows = kernel.ps.now()
        now = time.monotonic()
        yield [load(before.get(row.server), row, now - then) for row in rows]
        before, then, number = {row.server: row for row in rows}, now, number + 1


def show(kernel: Kernel, every: float, count: int, as_json: bool) -> None:
    """Draw in place on a terminal; elsewhere print look after look, one unless told how many."""
    if as_json:
        for loads in looks(kernel, every, count or (0 if sys.stdout.isatty() else 1)):
            print(printing.json(loads), flush=True)
    elif sys.stdout.isatty():
        with Live(console=printing.console(), auto_refresh=False, screen=not count) as screen:
            for loads in looks(kernel, every, count):
                screen.update(printing.table(loads, LOADS), refresh=True)
    else:
        for loads in looks(kernel, every, count or 1):
            printing.draw(loads, LOADS)
