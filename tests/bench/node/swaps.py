"""Swaps of a server while another process calls it a thousand times a second."""

import statistics
import time
from pathlib import Path

import msgspec

from atoll.ipc.system.kernel import Swap

from .. import children
from ..frame import Figure
from .booted import Booted
from .caller import Called

RATE = 1000
SWAPS = 20
BETWEEN = 0.25
SERVER = "echo_sandbox"
LONGEST_MS = 50
ROW = f"swap under {RATE:,} calls/s"


def measure(scratch: Path) -> list[Figure]:
    """So many swaps, one after the other, of a sandboxed server that hands its count over."""
    booted = Booted(scratch, name="swapped")
    pauses, took = [], []
    with booted.attached() as node, children.served("node.caller", booted.folder, SERVER, RATE) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        time.sleep(BETWEEN)
        for _ in range(SWAPS):
            start = time.perf_counter()
            pauses.append(node.kernel.swap.now(Swap(server=SERVER)).pause)
            took.append(time.perf_counter() - start)
            time.sleep(BETWEEN)
        caller.stdin.write(b"\n")
        caller.stdin.flush()
        called = msgspec.json.decode(caller.stdout.readline(), type=Called)
    return [
        _milliseconds("longest wait of a call", [called.longest], LONGEST_MS),
        _milliseconds("wait of a call, 999 of 1,000", [called.p999]),
        _milliseconds("pause of the server", pauses),
        _milliseconds("whole swap", took),
        Figure(name=f"{ROW}: calls a second", value=called.calls / called.seconds, unit="1/s"),
        _count("calls that failed", called.errors),
        _count("calls lost or doubled", called.astray),
    ]


def _milliseconds(what: str, took: list[float], most: float | None = None) -> Figure:
    value = statistics.median(took) * 1e3
    return Figure(
        name=f"{ROW}: {what}",
        value=value,
        unit="ms",
        least=min(took) * 1e3,
        greatest=max(took) * 1e3,
        rounds=SWAPS,
        goal=None if most is None else f"<= {most:g}",
        holds=None if most is None else value <= most,
    )


def _count(what: str, value: int) -> Figure:
    return Figure(name=f"{ROW}: {what}", value=value, unit="count", goal="<= 0", holds=value == 0)
