"""Rows in transactions of a hundred, of which some are outstanding: how an import comes in."""

import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, Write

from ..frame import Block, Contestant
from ..placement import Placement
from ..store.work import VALUE
from .booted import KEYSPACE, Booted

ROWS = 100
OUTSTANDING = 8
KEYS = 1_000_000


def contestant(booted: Booted, name: str) -> Contestant:
    """An operation is a row; one client."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            begin, chance = node.keyspace(KEYSPACE).commit.start, random.Random(3)

            def block(n: int) -> float:
                under_way: deque[Future[Committed]] = deque()
                start = time.perf_counter()
                for _ in range(n // ROWS):
                    if len(under_way) == OUTSTANDING:
                        under_way.popleft().result()
                    first = chance.randrange(KEYS)
                    under_way.append(
                        begin([Write(b"import/%08d" % (first + row), VALUE) for row in range(ROWS)])
                    )
                for each in under_way:
                    each.result()
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_, least=ROWS * OUTSTANDING)
