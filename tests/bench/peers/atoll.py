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
PAUSE = 0.002  # s: longer than either end spins
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
    """Pairs whose two ends both sleep at first; a trapped one would pay a wake-up of a core with each call for ever.

    Judged by the usual call of a pair's second half, against a call that finds both asleep: one moment in which the host
    runs something else is no trap, and pairs that are trapped all together are not each other's measure.
    """
    cores = available()
    if len(cores) < 2:
        raise Unavailable("one core: the trap needs two that halt")
    settled, asleep = [], []
    with serving(Server, core=cores[-1], clients=pairs) as served, pinned(cores[0]):
        for echo in served.proxies:
            took = [_timed(echo) for _ in range(CALLS_PARKED)]
            settled.append(statistics.median(took[CALLS_PARKED // 2 :]))
        for echo in served.proxies:
            time.sleep(PAUSE)
            asleep.append(_timed(echo))
    name = f"{pairs} pairs started from parked"
    trapped = sum(call > statistics.median(asleep) / 5 for call in settled)
    return [
        _spread(f"{name}: call of the usual pair", settled),
        _spread(f"{name}: call that finds both asleep", asleep),
        Figure(name=f"{name}: pairs trapped", value=trapped, unit="count", goal="<= 0", holds=trapped == 0),
    ]


def _timed(echo: Echo) -> float:
    start = time.perf_counter()
    echo.exchange.now(NUMBER, TEXT)
    return (time.perf_counter() - start) * 1e6


def _spread(name: str, took: list[float]) -> Figure:
    return Figure(name=name, value=statistics.median(took), unit="µs", least=min(took), greatest=max(took))


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
