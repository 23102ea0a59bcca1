"""What is timed of Atoll, whoever serves: blocks over a proxy of the bench's echo."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import trio

from ..echo.interface import Echo
from ..frame import Block, Open
from ..payload import NUMBER, TEXT
from ..placement import Placement

Proxies = Callable[[Placement], AbstractContextManager[Echo]]
"""A proxy whose server runs where the placement says."""
UNDER_WAY = 100


def blocking(proxies: Proxies, method: str) -> Open:
    """Calls one after the other from a thread that blocks."""

    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with proxies(placement) as echo:
            now = getattr(echo, method).now

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    now(NUMBER, TEXT)
                return time.perf_counter() - start

            yield block

    return opened


def pipelined(proxies: Proxies) -> Open:
    """A hundred calls under way at once; one operation is a hundred."""

    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with proxies(placement) as echo:
            start_one = echo.exchange.start

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    for future in [start_one(NUMBER, TEXT) for _ in range(UNDER_WAY)]:
                        future.result()
                return time.perf_counter() - start

            yield block

    return opened


async def _calls(echo: Echo, n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        await echo.exchange(NUMBER, TEXT)
    return time.perf_counter() - start


def from_trio(proxies: Proxies) -> Open:
    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with proxies(placement) as echo:
            yield lambda n: trio.run(_calls, echo, n)

    return opened


def from_asyncio(proxies: Proxies) -> Open:
    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with proxies(placement) as echo, asyncio.Runner() as runner:
            yield lambda n: runner.run(_calls(echo, n))

    return opened


def streamed(proxies: Proxies, method: str) -> Open:
    """Items of one stream; an operation is an item."""

    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with proxies(placement) as echo:

            def block(n: int) -> float:
                start = time.perf_counter()
                if sum(1 for _ in getattr(echo, method).now(n)) != n:
                    raise RuntimeError("items were lost")
                return time.perf_counter() - start

            yield block

    return opened
