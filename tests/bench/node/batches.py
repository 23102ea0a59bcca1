"""Rows in transactions of a hundred, of which some are outstanding: how an import comes in."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from atoll.ipc.system.state import Write

from ..frame import Block, Contestant
from ..placement import Placement
from ..store.etcd import Cluster
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
            begin = node.keyspace(KEYSPACE).commit.start
            yield _block(lambda rows: begin([Write(key, value) for key, value in rows]))

    return Contestant(name, open_, least=ROWS * OUTSTANDING)


def at_etcd(cluster: Cluster, name: str) -> Contestant:
    """The same at a member of an etcd cluster."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with cluster.lease(), cluster.transactions() as transact:
            yield _block(transact)

    return Contestant(name, open_, least=ROWS * OUTSTANDING)


def _block(begin: Callable[[list[tuple[bytes, bytes]]], Any]) -> Block:
    """Transactions that `begin` gives futures of."""
    chance = random.Random(3)

    def block(n: int) -> float:
        under_way: deque[Any] = deque()
        start = time.perf_counter()
        for _ in range(n // ROWS):
            if len(under_way) == OUTSTANDING:
                under_way.popleft().result()
            first = chance.randrange(KEYS)
            under_way.append(begin([(b"import/%08d" % (first + row), VALUE) for row in range(ROWS)]))
        for each in under_way:
            each.result()
        return time.perf_counter() - start

    return block
