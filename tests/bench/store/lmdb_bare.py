"""Bare LMDB in this process: the same rows, put and committed with nothing around them.

What a careful user of py-lmdb would do: one write transaction a group, `putmulti` a table, append where
keys only grow. Making the rows is not timed: this is the store alone. (Writing the file's blocks
beforehand, or preallocating them, made no difference that could be told from noise.)
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from ..frame import Block, Contestant
from ..placement import Placement
from .work import KEYS, Layout, Work

MAP = 1 << 30


class Store:
    """An environment with the layout's tables, holding each key's first version."""

    def __init__(self, folder: Path, make: Callable[[], Layout]) -> None:
        folder.mkdir()
        layout = make()
        self.folder, self.layout, self.work = folder, layout, Work()
        self.environment = lmdb.open(
            str(folder), map_size=MAP, max_dbs=len(layout.tables) + 1, max_spare_txns=8, readahead=False
        )
        self.tables = [
            (self.environment.open_db(table.name.encode()), table.append) for table in layout.tables
        ]
        for _ in range(KEYS // 500):
            self.commit(500)

    def commit(self, size: int) -> float:
        made = self.layout.rows(self.work.group(size))
        start = time.perf_counter()
        with self.environment.begin(write=True) as transaction:
            for (table, append), rows in zip(self.tables, made, strict=True):
                if rows:
                    transaction.cursor(table).putmulti(rows, append=append)
        return time.perf_counter() - start

    def close(self) -> None:
        self.environment.close()
        shutil.rmtree(self.folder)


def commits(scratch: Path, name: str, make: Callable[[], Layout], group: int) -> Contestant:
    """Durable transactions, `group` of them a commit; an operation is a transaction."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        store = Store(scratch / f"lmdb-{group}", make)
        try:
            yield lambda n: sum(store.commit(group) for _ in range(n // group))
        finally:
            store.close()

    return Contestant(name, open_, least=group)


def reads(scratch: Path, name: str, make: Callable[[], Layout]) -> Contestant:
    """A read transaction and one get of a row that is there."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        store = Store(scratch / "lmdb-read", make)
        try:
            table = store.tables[1][0]
            with store.environment.begin(db=table) as transaction:
                keys = [key for key, _ in transaction.cursor()][: KEYS // 10]
            begin = store.environment.begin

            def block(n: int) -> float:
                start = time.perf_counter()
                for i in range(n):
                    with begin(db=table) as transaction:
                        transaction.get(keys[i % len(keys)])
                return time.perf_counter() - start

            yield block
        finally:
            store.close()

    return Contestant(name, open_)
