"""How long until a server serves, beside what a fresh interpreter needs; what a node costs that stands idle."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .frame import Block, Contestant, Goal, Race, Row, Survey
from .node import idle, starts
from .node.booted import Booted
from .placement import Placement

ATOLL, IMPORTS = "atoll", "fresh python, imports"
SCRIPTS = {IMPORTS: "import trio, msgspec, cffi", "fresh python, pass": "pass"}


def _fresh(name: str, script: str) -> Contestant:
    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        def block(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                subprocess.run([sys.executable, "-c", script], check=True)
            return time.perf_counter() - start

        yield block

    return Contestant(name, open_)


def rows(scratch: Path) -> list[Row]:
    return [
        Race(
            group="start",
            name="server at level sandbox, started and ready to serve",
            unit="ms",
            contestants=[
                starts.started(Booted(scratch), ATOLL, "sandbox"),
                *(_fresh(name, script) for name, script in SCRIPTS.items()),
            ],
            subject=ATOLL,
            goals=[Goal("<=", 1 / 10, IMPORTS)],
            seconds=0.3,
            warm=0.0,
            bias="The fresh interpreter only imports; it neither isolates itself nor answers anybody.",
        ),
        Survey("start", "idle node, images/rlhf.toml", lambda: idle.measure(scratch, "rlhf", goal=True)),
        Survey(
            "start", "idle node, images/minimal.toml", lambda: idle.measure(scratch, "minimal", goal=True)
        ),
    ]
