"""The `state` server's group commit, with no channel before it: on LMDB as a contestant, on a recorder as
a layout.

As a contestant it is not what is promised but where a loss comes from: what lies between bare LMDB and
this is the store's layer, what lies between this and `atoll` is the way to it. As a layout it gives bare
LMDB the rows that the server writes for the same transactions, made by the server's own code
(docs/decisions/0002-store-layout.md).
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from atoll.ipc.deferred import Deferred
from atoll.ipc.system.state import Committed
from atoll.servers.state import layout
from atoll.servers.state.engine import Batch, Engine, Table
from atoll.servers.state.group import Group, Transaction
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.ownership import Ownership, settle_format

from .. import frame
from ..placement import Placement
from . import work

KEYSPACE = 7
CALL = "12:345678"
"""A channel and a request, as `state` notes who called."""


class Grouped:
    """A group commit on an engine, for transactions of one write."""

    def __init__(self, engine: Engine) -> None:
        self._group = Group(History(engine, str), Ownership(engine, 1), lambda written: None)
        self._prefix = layout.prefix(KEYSPACE)

    def commit(self, transactions: Sequence[work.Transaction]) -> None:
        """One batch with all of them; every one is settled when it returns."""
        outcomes: list[Deferred[Committed]] = []
        for _, key, value in transactions:
            done = Deferred[Committed]()
            self._group.admit(Transaction(KEYSPACE, [(self._prefix + key, value)], [], call=CALL), done)
            outcomes.append(done)
        self._group.flush()
        assert all(done.done for done in outcomes)


class Recorder(MemoryEngine):
    """Keeps the last batch, and nothing else."""

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        self.batch = batch


class State(work.Layout):
    """The rows of a group as the server makes them. Each instance is one store's stream of revisions."""

    tables = (
        work.Table("meta", append=False),
        work.Table("versions", append=False),
        work.Table("commits", append=False),
        work.Table("values", append=True),
        work.Table("events", append=True),
    )

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._grouped = Grouped(self._recorder)

    def rows(self, group: Sequence[work.Transaction]) -> Sequence[work.Rows]:
        self._grouped.commit(group)
        batch = self._recorder.batch
        events = [(layout.pack(position), event) for position, event in batch.events]
        return *(sorted(batch.puts.get(table, [])) for table in Table), events


def commits(scratch: Path, name: str, size: int) -> frame.Contestant:
    """Durable transactions, `size` of them a commit; an operation is a transaction."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[frame.Block]:
        folder = scratch / f"grouped-{size}"
        engine = LmdbEngine(folder, map_size=1 << 30, limit=(1 << 30) - (128 << 20))
        try:
            settle_format(engine)
            store, stream = Grouped(engine), work.Work()
            for _ in range(work.KEYS // 500):
                store.commit(stream.group(500))

            def block(n: int) -> float:
                took = 0.0
                for _ in range(n // size):
                    chosen = stream.group(size)
                    start = time.perf_counter()
                    store.commit(chosen)
                    took += time.perf_counter() - start
                return took

            yield block
        finally:
            engine.close()
            shutil.rmtree(folder)

    return frame.Contestant(name, open_, least=size)
