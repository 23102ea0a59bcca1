"""Compaction against a model that forgets nothing: random commits, pins, retentions, transactions and moments of
time, with the store's process dying between any two steps.

What is compared: an as-of read gives what it gave before, or `Compacted`, and never `Compacted` where the retention in force
at any pass, a pin or an open transaction promised it; the feed after a horizon is whole; histories hold what was promised of
them, in order; ids are known as long as is said; and the store is whole after every step.
"""

import tempfile
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.ipc.errors import AtollError
from atoll.ipc.system.state import Compacted, Item, Retention, Write
from atoll.servers.state import horizons, layout, pins
from atoll.servers.state.check import check
from atoll.servers.state.engine import Engine, Table
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from tests.servers.state.kept import GRACE, REMEMBER, Kept

KEYSPACES = (1, 2)
keyspaces = strategies.sampled_from(KEYSPACES)
keys = strategies.sampled_from([b"", b"a", b"a\0"])
values = strategies.one_of(
    strategies.none(), strategies.binary(max_size=2), strategies.sampled_from([b"x" * 300])
)
commits = strategies.lists(
    strategies.tuples(
        keyspaces, strategies.dictionaries(keys, values, min_size=1), strategies.integers(0, 4)
    ),
    min_size=1,
    max_size=6,
)
retentions = strategies.builds(
    Retention,
    strategies.one_of(strategies.none(), strategies.sampled_from([0.0, 8.0, 16.0])),
    strategies.one_of(strategies.none(), strategies.sampled_from([1, 2, 3])),
)
names = strategies.sampled_from(["one", "two"])

Rows = dict[bytes, bytes]


class Committed(NamedTuple):
    time: int
    writes: dict[tuple[int, bytes], bytes | None]


class CompactionMachine(RuleBasedStateMachine):
    operations = 1 << 19

    def engine(self) -> Engine:
        raise NotImplementedError

    @initialize(work=strategies.sampled_from([1, 4, 256]), retained=strategies.tuples(retentions, retentions))
    def open(self, work: int, retained: tuple[Retention, Retention]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.model = MemoryEngine(maximum_operations=self.operations)
        self.kept = Kept(self.engine, work)
        for name, retention in zip(KEYSPACES, retained, strict=True):
            self.kept.keyspace_state(f"keyspace {name}", retention)
        self.states = {name: self.kept.state(name) for name in (0, *KEYSPACES)}
        self.base = self.head = self.kept.server._history.head()
        self.log: dict[int, Committed] = {}
        self.retention = dict(zip(KEYSPACES, retained, strict=True))
        self.promised = dict.fromkeys(KEYSPACES, 0)
        """No horizon has a reason to be above this."""
        self.forgetful: set[int] = set()
        """Keyspaces that had a retention when a pass began: their ids may be forgotten."""
        self.pins: dict[tuple[int, str], int] = {}
        self.ids: dict[tuple[int, bytes], tuple[int, float]] = {}
        self.transactions: dict[bytes, tuple[int, int]] = {}
        """Who began it, and at which revision."""

    # what happens -------------------------------------------------------------------------------------------

    def _caught_up(self) -> None:
        """Revisions of the store's own (pins, keyspaces, records) are in the log as well."""
        history = self.kept.server._history
        while self.head < history.head():
            self.head += 1
            with self.kept.server._engine.snapshot() as snapshot:
                raw = snapshot.event(self.head)
                assert raw is not None
                self.log.setdefault(self.head, Committed(layout.time_of(raw), {}))

    @rule(commits=commits)
    def commit(self, commits: list[tuple[int, dict[bytes, bytes | None], int]]) -> None:
        for keyspace, writes, pause in commits:
            self.kept.hands.now += pause
            rows = [Write(key, value) for key, value in writes.items()]
            done = self.states[keyspace].commit.start(rows).result()
            self.log[done.revision] = Committed(
                done.time, {(keyspace, key): value for key, value in writes.items()}
            )
        self._caught_up()

    @rule(keyspace=keyspaces, id=strategies.sampled_from([b"i", b"j", b"k"]))
    def commit_once(self, keyspace: int, id: bytes) -> None:
        now = self.kept.hands.now
        done = self.states[keyspace].commit.start([Write(b"once", id)], id=id).result()
        before, then = self.ids.get((keyspace, id), (0, 0.0))
        if before and (now - then < REMEMBER or keyspace not in self.forgetful):
            assert done.repeated
        if done.repeated:
            assert done.revision == before
        else:
            self.ids[keyspace, id] = (done.revision, now)
            self.log[done.revision] = Committed(done.time, {(keyspace, b"once"): id})
        self._caught_up()

    @rule(one=values, two=values)
    def commit_both(self, one: bytes | None, two: bytes | None) -> None:
        writes = {(1, b"a"): one, (2, b""): two}
        rows = [Write(layout.prefix(number) + key, value) for (number, key), value in writes.items()]
        done = self.states[0].commit.start(rows).result()
        self.log[done.revision] = Committed(done.time, writes)
        self._caught_up()

    @rule(seconds=strategies.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.kept.hands.now += seconds

    @rule(keyspace=keyspaces, retention=retentions)
    def retain(self, keyspace: int, retention: Retention) -> None:
        self.states[0].make_keyspace.start(f"keyspace {keyspace}", retention).result()
        self.retention[keyspace] = retention
        self._caught_up()

    @rule(keyspace=strategies.sampled_from((0, *KEYSPACES)), name=names, back=strategies.integers(0, 12))
    def pin(self, keyspace: int, name: str, back: int) -> None:
        revision = max(1, self.head - back)
        try:
            made = self.states[keyspace].pin.start(name, revision).result()
        except AtollError as error:
            if isinstance(error, Compacted):
                assert any(self._horizon(each) > revision for each in self._of(keyspace))
            else:
                assert self.pins[keyspace, name] != revision
        else:
            assert made.revision == revision
            self.pins[keyspace, name] = revision
        self._caught_up()

    @rule(keyspace=strategies.sampled_from((0, *KEYSPACES)), name=names)
    def unpin(self, keyspace: int, name: str) -> None:
        self.states[keyspace].unpin.start(name).result()
        self.pins.pop((keyspace, name), None)
        self._caught_up()

    @rule(keyspace=keyspaces)
    def begin_transaction(self, keyspace: int) -> None:
        if len(self.transactions) < 2:
            self.transactions[self.states[keyspace].begin.start(3600.0).result()] = (keyspace, self.head)

    @precondition(lambda self: self.transactions)
    @rule()
    def end_transaction(self) -> None:
        id, (keyspace, _) = self.transactions.popitem()
        self.states[keyspace].abort.start(id).result()

    @rule()
    def begin_pass(self) -> None:
        if self.kept.begin():
            for keyspace in KEYSPACES:
                self.promised[keyspace] = max(self.promised[keyspace], self._reason(keyspace))
                if self.retention[keyspace] != Retention():
                    self.forgetful.add(keyspace)

    @rule(steps=strategies.integers(1, 8))
    def go_on(self, steps: int) -> None:
        while steps and self.kept.step():
            steps -= 1
        self.see()

    @rule()
    def end_pass(self) -> None:
        while self.kept.step():
            pass
        if self.kept.server._passes.allowed():
            self.kept.server._passes.record(int(self.kept.hands.now * 1e9))
        self._caught_up()
        self.see()

    @rule(seconds=strategies.integers(0, 20))
    def compact(self, seconds: int) -> None:
        self.kept.hands.now += seconds
        self.begin_pass()
        self.end_pass()

    @rule()
    def die(self) -> None:
        self.kept.die()
        self.transactions.clear()

    # what was promised --------------------------------------------------------------------------------------

    def _of(self, keyspace: int) -> tuple[int, ...]:
        return (keyspace,) if keyspace else KEYSPACES

    def _horizon(self, keyspace: int) -> int:
        with self.kept.server._engine.snapshot() as snapshot:
            return horizons.progress_of(snapshot, keyspace).horizon

    def _revision_at(self, seconds: float) -> int:
        return self.base + bisect_right(
            range(self.base + 1, self.head + 1), seconds * 1e9, key=lambda revision: self.log[revision].time
        )

    def _versions(self, keyspace: int, key: bytes, until: int) -> list[int]:
        return [
            revision
            for revision in range(self.base + 1, until + 1)
            if (keyspace, key) in self.log[revision].writes
        ]

    def _reason(self, keyspace: int) -> int:
        """Up to where a pass that begins now may raise a horizon: what the retention keeps must be readable."""
        retention, now = self.retention[keyspace], self.kept.hands.now
        most = min([self.head, *(began for _, began in self.transactions.values())])
        reasons = [0]
        if retention.age is not None:
            reasons.append(min(most, self._revision_at(now - max(retention.age, GRACE))))
        if retention.versions is not None:
            until = min(most, self._revision_at(now - GRACE))
            for key in {
                key for each in self.log.values() for number, key in each.writes if number == keyspace
            }:
                versions = self._versions(keyspace, key, until)
                if len(versions) > retention.versions:
                    reasons.append(versions[-retention.versions])
                elif versions and retention.versions == 1:
                    reasons.append(versions[-1])  # a deletion alone is as good as nothing
        return max(reasons)

    def _contents(self, keyspace: int, revision: int) -> Rows:
        rows: dict[bytes, bytes | None] = {}
        for each in range(self.base + 1, revision + 1):
            rows |= {
                key: value for (number, key), value in self.log[each].writes.items() if number == keyspace
            }
        return {key: value for key, value in sorted(rows.items()) if value is not None}

    # what is seen -------------------------------------------------------------------------------------------

    def see(self) -> None:
        for keyspace in KEYSPACES:
            self.read_as_of_every_revision(keyspace)
            self.read_as_of_times(keyspace)
            self.follow_the_feed(keyspace)
            for key in (b"", b"a", b"a\0"):
                self.look_at_a_history(keyspace, key)
        self.read_in_transactions()

    def read_as_of_every_revision(self, keyspace: int) -> None:
        state = self.states[keyspace]
        pinned = {revision for (of, _), revision in self.pins.items() if of in (0, keyspace)}
        for revision in range(self.base, self.head + 1):
            expected = self._contents(keyspace, revision)
            try:
                page = state.range.start(b"", as_of=revision).result()
            except Compacted as error:
                horizon = error.horizon
            else:
                horizon = 0
            if horizon:
                assert revision < horizon <= self.promised[keyspace]
                assert revision not in pinned
                for call in (
                    state.get.start(b"a", revision),
                    state.range.start(b"", as_of=revision, reverse=True),
                ):
                    with pytest.raises(Compacted):
                        call.result()
                continue
            assert _plain(page.items) == expected
            assert list(_plain(page.items)) == list(expected)
            back = state.range.start(b"", as_of=revision, reverse=True).result()
            assert list(_plain(back.items)) == list(reversed(expected))
            for key in (b"", b"a", b"a\0", b"once"):
                item = state.get.start(key, revision).result()
                assert (None if item is None else item.value) == expected.get(key)
                if item is not None:
                    assert item.time == self.log[item.revision].time

    def read_as_of_times(self, keyspace: int) -> None:
        state, kept = self.states[keyspace], self.promised[keyspace]
        floor = self.log[kept].time / 1e9 if kept in self.log else 0.0
        for seconds in range(1000, int(self.kept.hands.now) + 2):
            moment = seconds + 0.5
            expected = self._contents(keyspace, self._revision_at(moment))
            try:
                page = state.range.start(b"", as_of=moment).result()
                at = state.revision_at.start(moment).result()
            except Compacted:
                assert moment < floor
                continue
            assert _plain(page.items) == expected
            assert _plain(state.range.start(b"", as_of=at).result().items) == expected

    def follow_the_feed(self, keyspace: int) -> None:
        history, prefix = self.kept.server._history, layout.prefix(keyspace)
        horizon = self._horizon(keyspace)
        for after in range(self.base, self.head + 1):
            if after < horizon:
                with pytest.raises(Compacted):
                    history.changes(after, prefix, 10_000)
                continue
            changes, seen, more = history.changes(after, prefix, 10_000)
            assert (seen, more) == (self.head, False) or after == self.head
            told = {
                change.revision: {(keyspace, item.key[4:]): item.value for item in change.items}
                for change in changes
            }
            assert told == {
                revision: mine
                for revision in range(after + 1, self.head + 1)
                if (
                    mine := {
                        at: value for at, value in self.log[revision].writes.items() if at[0] == keyspace
                    }
                )
            }

    def look_at_a_history(self, keyspace: int, key: bytes) -> None:
        kept = [item.revision for item in self.states[keyspace].history.start(key).result()]
        versions = self._versions(keyspace, key, self.head)[::-1]
        assert [revision for revision in versions if revision in kept] == kept
        horizon = self._horizon(keyspace)
        assert [revision for revision in versions if revision > horizon] == [
            revision for revision in kept if revision > horizon
        ]
        for item in self.states[keyspace].history.start(key).result():
            assert item.value == self.log[item.revision].writes[keyspace, key]

    def read_in_transactions(self) -> None:
        for id, (_, began) in self.transactions.items():
            for keyspace in KEYSPACES:
                page = self.states[keyspace].scan.start(id, b"").result()
                assert _plain(page.items) == self._contents(keyspace, began)

    def leave_nothing(self, kept: Kept, head: int) -> None:
        """When nothing is held and all is old, each key that is there has one version, and what is not has none."""
        with kept.server._engine.snapshot() as snapshot:
            held = pins.everything(snapshot)
        for keyspace, pin in held:
            kept.state(keyspace).unpin.start(pin.name).result()
        kept.die()
        for keyspace in KEYSPACES:
            kept.state().make_keyspace.start(f"keyspace {keyspace}", Retention(age=0.0)).result()
        kept.hands.now += 10**8
        kept.state().commit.start([Write(layout.prefix(1) + b"last", b"")]).result()
        kept.compact()
        with kept.server._engine.snapshot() as snapshot:
            cursor = snapshot.cursor(Table.VERSIONS)
            left, row = [], cursor.seek(layout.prefix(1))
            while row is not None:
                left.append((layout.keyspace_of(row[0]), layout.key_of(row[0])[layout.KEYSPACE_SIZE :]))
                row = cursor.next()
        now = [(keyspace, key) for keyspace in KEYSPACES for key in self._contents(keyspace, head)]
        assert left == sorted({*now, (1, b"last")})

    @invariant()
    def whole(self) -> None:
        if hasattr(self, "kept"):
            assert not check(self.kept.server._engine).breaches
            assert self.kept.server._history.head() == self.head

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            try:
                self.see()
                self.leave_nothing(self.kept, self.head)
            finally:
                self.kept.server._engine.close()
                self.folder.cleanup()


def _plain(items: list[Item]) -> Rows:
    return {item.key: item.value or b"" for item in items}


class OnMemory(CompactionMachine):
    def engine(self) -> Engine:
        return self.model


class OnFewOperations(OnMemory):
    """What one step removes of a keyspace is more than a batch may have."""

    operations = 10


class OnLmdb(CompactionMachine):
    def engine(self) -> Engine:
        return LmdbEngine(Path(self.folder.name) / "store", map_size=1 << 30, limit=256 << 20)


@pytest.mark.timeout(600)
class TestCompactionOnMemory(OnMemory.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None, phases=[Phase.generate])


@pytest.mark.timeout(600)
class TestCompactionOnFewOperations(OnFewOperations.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=50, stateful_step_count=30, deadline=None, phases=[Phase.generate])


@pytest.mark.timeout(600)
class TestCompactionOnLmdb(OnLmdb.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
