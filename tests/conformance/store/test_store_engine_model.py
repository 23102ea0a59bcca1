"""LMDB against the model: random batches, refused ones too, snapshots held open meanwhile, reopening, and crashes.

A crash is a process that commits some batches and is killed around one of them. Afterwards exactly what it was told is
durable is there, and the batch that it had in hand is there wholly or not at all.
"""

import os
import signal
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from atoll.servers.state.engine import Batch, ConditionFailed, Engine, Snapshot, Table
from tests.kit.forked import forked

from .store_engines import POINTS, Dying, Store, lmdb_store, memory_store

TABLES = [Table.META, Table.VERSIONS, Table.COMMITS]
keys = strategies.binary(min_size=1, max_size=3)
values = strategies.one_of(strategies.binary(max_size=4), strategies.sampled_from([2500]).map(bytes))
puts = strategies.lists(strategies.tuples(strategies.sampled_from(TABLES), keys, values), max_size=6)
deletes = strategies.lists(strategies.tuples(strategies.sampled_from(TABLES), keys), max_size=3)
counts = strategies.integers(0, 3)
drops = strategies.lists(strategies.integers(1, 12), max_size=3)
Asked = tuple[list[tuple[Table, bytes, bytes]], list[tuple[Table, bytes]], int, list[int]]
"""Puts, deletes, how many events, and positions to drop."""


def batch_of(asked: Asked, position: int) -> Batch:
    """`position`: of the last event so far."""
    puts, deletes, events, drops = asked
    batch = Batch()
    for table, row, value in puts:
        batch.put(table, row, value)
    for table, row in deletes:
        batch.delete(table, row)
    for dropped in drops:
        if dropped < position:
            batch.drop(dropped)
    for number in range(events):
        batch.append(position + 1 + number, b"e%d" % number)
    return batch


def commit_and_die(folder: Path, batches: list[Batch], left: int, point: str, told: int) -> None:
    engine = Dying(folder, left, point)
    for batch in batches:
        engine.commit(batch)
        os.write(told, b".")
    os.kill(os.getpid(), signal.SIGKILL)


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

    @rule(asked=strategies.tuples(puts, deletes, counts, drops), wrong=strategies.booleans(), key=keys)
    def commit(self, asked: Asked, wrong: bool, key: bytes) -> None:
        outcomes = []
        with self.engines[1].snapshot() as snapshot:
            before = snapshot.get(Table.VERSIONS, key)
        for engine in self.engines:
            batch = batch_of(asked, self.position)
            batch.require(Table.VERSIONS, key, b"not this" if wrong else before)
            try:
                engine.commit(batch)
            except ConditionFailed as failed:
                outcomes.append((failed.condition, failed.found))
            else:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1]
        if not wrong:
            self.position += len(batch.events)

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

    @rule(
        asked=strategies.lists(strategies.tuples(puts, deletes, counts, drops), min_size=1, max_size=4),
        left=strategies.integers(0, 3),
        point=strategies.sampled_from(POINTS),
    )
    def crash(self, asked: list[Asked], left: int, point: str) -> None:
        while self.held:
            self.release()
        batches, position = [], self.position
        for each in asked:
            made = batch_of(each, position)
            if made.operations:  # of one that holds nothing nothing is logged, and nobody dies over it
                batches.append(made)
                position += len(made.events)
        reading, told = os.pipe()
        with self.stores[0].away():
            doomed = partial(commit_and_die, Path(self.folder.name) / "store", batches, left, point, told)
            with forked(doomed) as child:
                ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            assert ended is not None and ended.si_status == signal.SIGKILL
            os.close(told)
            acknowledged = len(os.read(reading, 16))
            os.close(reading)
        assert acknowledged == min(left, len(batches))
        lmdb, model = self.engines
        for batch in batches[:acknowledged]:
            model.commit(batch)
        in_hand = batches[acknowledged : acknowledged + 1]
        with lmdb.snapshot() as there, model.snapshot() as told_of:
            came = contents(there) != contents(told_of)
        assert not came or point not in ("before the batch", "before the log")
        for batch in in_hand if came else []:
            model.commit(batch)
        # That the two are the same now is the invariant.
        with model.snapshot() as snapshot:
            self.position = snapshot.bounds()[1]

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
