"""A client process of the store: for each line on its standard input, so many transactions, some outstanding."""

import random
import sys
from collections import deque

from atoll.ipc.attach import connect
from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, State, Write

from .. import children
from ..store.work import KEYS, VALUE
from .booted import KEYSPACE

FILLED = 500
"""Writes of one transaction while keys get their first version."""


def fill(store: State) -> None:
    """Each key's first version, so that no store is measured while it is small."""
    for first in range(0, KEYS, FILLED):
        store.commit.now([Write(b"rating/%08d" % (first + i), VALUE) for i in range(FILLED)])


def main(arguments: list[str]) -> None:
    folder, outstanding, seed = arguments[0], int(arguments[1]), int(arguments[2])
    chance = random.Random(seed)
    with connect(folder) as node:
        store = node.keyspace(KEYSPACE)
        if seed == 0:
            fill(store)
        start = store.commit.start

        def begin() -> Future[Committed]:
            return start([Write(b"rating/%08d" % chance.randrange(KEYS), VALUE)])

        children.ready()
        for line in sys.stdin:
            under_way: deque[Future[Committed]] = deque()
            for _ in range(int(line)):
                if len(under_way) == outstanding:
                    under_way.popleft().result()
                under_way.append(begin())
            for future in under_way:
                future.result()
            children.ready()
