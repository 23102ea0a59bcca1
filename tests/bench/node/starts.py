"""How long a server of a node takes until it serves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..echo.interface import Echo
from ..frame import Block, Contestant
from ..payload import NUMBER, TEXT
from ..placement import Placement
from .booted import Booted


def started(booted: Booted, name: str, level: str) -> Contestant:
    """A stopped server, started from the zygote by a system call, until a call from outside is answered."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            server = f"echo_{level}"
            exchange = node.open(server, Echo).exchange.now

            def block(n: int) -> float:
                took = 0.0
                for _ in range(n):
                    node.kernel.stop.now(server)
                    start = time.perf_counter()
                    node.kernel.restart.now(server)
                    exchange(NUMBER, TEXT)
                    took += time.perf_counter() - start
                return took

            yield block

    return Contestant(name, open_)
