"""Atoll itself: a server process behind real channels, without a kernel (tests/kit), at no protection level."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kit.serving import serving

from ..echo.interface import Echo
from ..echo.server import Server
from ..frame import Figure, Unavailable
from ..payload import NUMBER, TEXT
from ..placement import Placement, available, pinned
from . import blocks

CALLS_PARKED = 200
BUSY_CALLS = 300


class Busy(Server):
    """Beside one Python thread that computes all the time."""

    async def start(self) -> None:
        threading.Thread(target=_compute, daemon=True).start()


def _compute() -> None:
    number = 0
    while True:
        number += 1


@contextmanager
def _proxy(placement: Placement) -> Iterator[Echo]:
    with serving(Server, core=placement.server) as served:
        yield served.proxies[0]


typed = blocks.blocking(_proxy, "exchange")


def started_parked(pairs: int) -> list[Figure]:
    """Pairs whose two ends both sleep at first; a trapped one would pay a wake-up of a core with each call for ever."""
    cores = available()
    if len(cores) < 2:
        raise Unavailable("one core: the trap needs two that halt")
    means = []
    with serving(Server, core=cores[-1], clients=pairs) as served, pinned(cores[0]):
        for echo in served.proxies:
            now = echo.exchange.now
            start = time.perf_counter()
            for _ in range(CALLS_PARKED):
                now(NUMBER, TEXT)
            means.append((time.perf_counter() - start) / CALLS_PARKED * 1e6)
    usual = statistics.median(means)
    name = f"{pairs} pairs started from parked"
    trapped = sum(mean > 8 * usual for mean in means)
    return [
        Figure(
            name=f"{name}: mean call of the usual pair",
            value=usual,
            unit="µs",
            least=min(means),
            greatest=max(means),
        ),
        Figure(name=f"{name}: pairs trapped", value=trapped, unit="count", goal="<= 0", holds=trapped == 0),
    ]


def beside_a_busy_thread() -> list[Figure]:
    took = []
    with serving(Busy) as served:
        now = served.proxies[0].exchange.now
        for _ in range(BUSY_CALLS):
            start = time.perf_counter()
            now(NUMBER, TEXT)
            took.append(time.perf_counter() - start)
    value = statistics.median(took) * 1e3
    name = "typed call beside one busy Python thread in the server"
    return [
        Figure(
            name=name,
            value=value,
            unit="ms",
            goal="<= 0.5",
            holds=value <= 0.5,
            least=min(took) * 1e3,
            greatest=max(took) * 1e3,
        )
    ]
