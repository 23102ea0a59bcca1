"""The echo servers of a booted node: a proxy at a level, and buffers granted to it."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.ipc.buffer import Buffer

from ..echo.interface import Echo
from ..frame import Block, Figure, Open
from ..payload import NUMBER, TEXT
from ..peers.blocks import Proxies
from ..peers.megabyte import BYTES
from ..placement import Placement
from .booted import Booted, place

GRANTS = 20


def at(booted: Booted, level: str) -> Proxies:
    """A client from outside the node, the server at that level."""

    @contextmanager
    def proxy(placement: Placement) -> Iterator[Echo]:
        with booted.attached() as node:
            place(node, f"echo_{level}", placement.server)
            yield node.open(f"echo_{level}", Echo)

    return proxy


@contextmanager
def _granted(booted: Booted, level: str, placement: Placement) -> Iterator[tuple[Echo, Buffer]]:
    """A buffer that the server has mapped already."""
    with booted.attached() as node:
        place(node, f"echo_{level}", placement.server)
        echo, buffer = node.open(f"echo_{level}", Echo), node.buffer(BYTES)
        buffer.view[:] = bytes(BYTES)
        echo.read.now(buffer)
        try:
            yield echo, buffer
        finally:
            node.kernel.buffer_release.now(buffer.handle)


def handed_over(booted: Booted, level: str) -> Open:
    """The hand-over alone: a call that carries the buffer, read by nobody."""

    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        with _granted(booted, level, placement) as (echo, buffer):

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    echo.hold.now(buffer)
                return time.perf_counter() - start

            yield block

    return opened


def written_and_read(booted: Booted, level: str) -> Open:
    """1 MiB from private memory into the buffer, the hand-over, and from there into the server's own memory."""

    @contextmanager
    def opened(placement: Placement) -> Iterator[Block]:
        private = bytes(BYTES)
        with _granted(booted, level, placement) as (echo, buffer):

            def block(n: int) -> float:
                start = time.perf_counter()
                for _ in range(n):
                    buffer.view[:] = private
                    echo.read.now(buffer)
                return time.perf_counter() - start

            yield block

    return opened


def first_grants(booted: Booted, level: str) -> list[Figure]:
    """What a grant costs once: the kernel makes and preallocates it, the owner maps it; then the first hand-over, for
    which the kernel shares it and the server maps it."""
    made, first, calls = [], [], []
    with booted.attached() as node:
        echo = node.open(f"echo_{level}", Echo)
        for _ in range(GRANTS):
            for _ in range(20):
                start = time.perf_counter()
                echo.exchange.now(NUMBER, TEXT)
                calls.append(time.perf_counter() - start)
            start = time.perf_counter()
            buffer = node.buffer(BYTES)
            between = time.perf_counter()
            echo.hold.now(buffer)
            first.append(time.perf_counter() - between)
            made.append(between - start)
            node.kernel.buffer_release.now(buffer.handle)
    name = "1 MiB granted for the first time"

    def figure(what: str, took: list[float]) -> Figure:
        return Figure(
            name=f"{name}: {what}",
            value=statistics.median(took) * 1e6,
            unit="µs",
            least=min(took) * 1e6,
            greatest=max(took) * 1e6,
            rounds=len(took),
        )

    return [
        figure("made by the kernel, mapped by its owner", made),
        figure("handed over, mapped by the server", first),
        figure("a 64 B call beside them", calls),
    ]
