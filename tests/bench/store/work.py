"""The work of every store row: a transaction writes one of 10,000 keys, and keeps history, index and
provenance.

How a transaction becomes rows in an ordered map is a `Layout`. Bare LMDB is measured with the `state`
server's (`grouped.py`), so that the difference between the two is the server and not the rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

KEYS = 10_000
VALUE = b"v" * 100
SEED = 11

Rows = list[tuple[bytes, bytes]]
Transaction = tuple[int, bytes, bytes]
"""Revision, key, value."""


@dataclass(frozen=True)
class Table:
    name: str
    append: bool
    """Its keys only grow, so a put may go to the end without a search."""


class Layout(Protocol):
    """Tables, and the rows that a group of transactions puts into each, in the order of `tables`."""

    tables: Sequence[Table]

    def rows(self, group: Sequence[Transaction]) -> Sequence[Rows]: ...


class Work:
    """The stream of transactions, the same for each contestant that makes one."""

    def __init__(self) -> None:
        self._chance = random.Random(SEED)
        self._revision = 0

    def next(self) -> Transaction:
        self._revision += 1
        return self._revision, b"rating/%08d" % self._chance.randrange(KEYS), VALUE

    def group(self, size: int) -> list[Transaction]:
        return [self.next() for _ in range(size)]
