"""Reads of now and of an hour ago (the middle of the history), in a small keyspace and in one a hundred times as large.

The keyspaces are filled through the store, in transactions of hundreds of rows, version by version; the clock plays no part:
the moment is a revision.
"""

import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, State, Write

from ..frame import Block, Contestant
from ..placement import Placement
from .booted import HEAD, KEYSPACE, Booted

VERSIONS = 10
SMALL, LARGE = 10_000, 1_000_000
AT_ONCE = 500
"""Rows of one transaction."""
OUTSTANDING = 4
IMAGE = HEAD.format(keyspace=KEYSPACE) + "\n[keyspace.large]\n"


def _fill(store: State, keys: int) -> int:
    """Every key's versions; gives the revision in the middle."""
    revisions = [write_every(store, keys, b"%d" % version * 60) for version in range(VERSIONS)]
    return revisions[VERSIONS // 2]


def write_every(store: State, keys: int, value: bytes) -> int:
    """Writes every key once; gives the last revision."""
    under_way: deque[Future[Committed]] = deque()
    for first in range(0, keys, AT_ONCE):
        if len(under_way) == OUTSTANDING:
            under_way.popleft().result()
        rows = [Write(b"key/%08d" % number, value) for number in range(first, first + AT_ONCE)]
        under_way.append(store.commit.start(rows))
    return [each.result().revision for each in under_way][-1]


class Depths:
    """Both keyspaces of one node, filled when they are first read."""

    def __init__(self, booted: Booted) -> None:
        self._booted = booted
        self._middles: dict[str, int] = {}

    def contestant(self, name: str, keyspace: str, keys: int, *, past: bool) -> Contestant:
        @contextmanager
        def open_(placement: Placement) -> Iterator[Block]:
            with self._booted.attached() as node:
                store = node.keyspace(keyspace)
                if keyspace not in self._middles:
                    self._middles[keyspace] = _fill(store, keys)
                as_of = self._middles[keyspace] if past else None
                chance, get = random.Random(5), store.get.now

                def block(n: int) -> float:
                    chosen = [b"key/%08d" % chance.randrange(keys) for _ in range(n)]
                    start = time.perf_counter()
                    for key in chosen:
                        get(key, as_of)
                    return time.perf_counter() - start

                yield block

        return Contestant(name, open_)
