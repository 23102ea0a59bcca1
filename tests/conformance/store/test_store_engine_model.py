"""LMDB against the model: random batches, refused ones too, snapshots held open meanwhile, and reopening."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from atoll.servers.state.engine import Batch, ConditionFailed, Engine, Snapshot, Table

from .store_engines import Store, lmdb_store, memory_store

TABLES = [Table.META, Table.VERSIONS, Table.COMMITS]
keys = strategies.binary(min_size=1, max_size=3)
values = strategies.one_of(strategies.binary(max_size=4), strategies.sampled_from([2500]).map(bytes))
puts = strategies.lists(strategies.tuples(strategies.sampled_from(TABLES), keys, values), max_size=6)
deletes = strategies.lists(strategies.tuples(strategies.sampled_from(TABLES), keys), max_size=3)


def contents(snapshot: Snapshot) -> object:
    tables = {}
    for table in TABLES:
        cursor = snapshot.cursor(table)
        row = cursor.seek(b"")
        tables[table] = []
        while row is not None:
            tables[table].append(row)
            row = cursor.next()
    return tables, list(snapshot.feed(0)), snapshot.bounds()


class EngineMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.stores: list[Store] = [lmdb_store(Path(self.folder.name) / "store"), memory_store()]
        self.position = 0
        self.held: list[tuple[ExitStack, Snapshot, object]] = []

    @property
    def engines(self) -> list[Engine]:
        return [store.engine for store in self.stores]

    @rule(
        puts=puts,
        deletes=deletes,
        events=strategies.integers(0, 3),
        drops=strategies.lists(strategies.integers(1, 12), max_size=3),
        wrong=strategies.booleans(),
        key=keys,
    )
    def commit(
        self,
        puts: list[tuple[Table, bytes, bytes]],
        deletes: list[tuple[Table, bytes]],
        events: int,
        drops: list[int],
        wrong: bool,
        key: bytes,
    ) -> None:
        outcomes = []
        with self.engines[1].snapshot() as snapshot:
            before = snapshot.get(Table.VERSIONS, key)
        for engine in self.engines:
            batch = Batch()
            batch.require(Table.VERSIONS, key, b"not this" if wrong else before)
            for table, row, value in puts:
                batch.put(table, row, value)
            for table, row in deletes:
                batch.delete(table, row)
            for position in drops:
                if position < self.position:
                    batch.drop(position)
            for number in range(events):
                batch.append(self.position + 1 + number, b"e%d" % number)
            try:
                engine.commit(batch)
            except ConditionFailed as failed:
                outcomes.append((failed.condition, failed.found))
            else:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1]
        if not wrong:
            self.position += events

    @rule()
    def hold(self) -> None:
        if len(self.held) < 3:
            stack = ExitStack()
            snapshot = stack.enter_context(self.engines[0].snapshot())
            self.held.append((stack, snapshot, contents(snapshot)))

    @rule()
    def release(self) -> None:
        if self.held:
            stack, snapshot, seen = self.held.pop(0)
            assert contents(snapshot) == seen
            stack.close()

    @rule()
    def reopen(self) -> None:
        while self.held:
            self.release()
        for store in self.stores:
            store.reopen()

    @rule(table=strategies.sampled_from(TABLES), key=keys)
    def look(self, table: Table, key: bytes) -> None:
        found = []
        for engine in self.engines:
            with engine.snapshot() as snapshot:
                cursor = snapshot.cursor(table)
                steps = [cursor.seek(key), cursor.next(), cursor.next()]
                if None in steps:
                    steps = steps[: steps.index(None) + 1]
                found.append((snapshot.get(table, key), steps, snapshot.cursor(table).seek_before(key)))
        assert found[0] == found[1]

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "stores"):
            return
        seen = []
        for engine in self.engines:
            with engine.snapshot() as snapshot:
                seen.append(contents(snapshot))
        assert seen[0] == seen[1]

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            while self.held:
                self.release()
            for store in self.stores:
                store.engine.close()
            self.folder.cleanup()


@pytest.mark.timeout(600)
class TestEngineMachine(EngineMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
