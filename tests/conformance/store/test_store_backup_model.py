"""Chains of backups against the model that forgets nothing: random commits, deletions, pins, retentions and compactions,
with backups between them and compaction going on within them, restored as of every revision.

What is compared: a restored store is whole; it reads, as of each moment from its horizon on, what was read then; its
horizon is none that the store had not; what the newest backup reaches can always be restored; ids that were known are; pins
are there; and when all is compacted that may be, nothing is left but what is there now.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import Phase, settings, strategies
from hypothesis.stateful import precondition, rule

from atoll.ipc.system.state import Compacted, Outline
from atoll.servers.state import export, horizons, layout, pins
from atoll.servers.state.backup import archive
from atoll.servers.state.backup.faults import Refused
from atoll.servers.state.backup.restore import point, rebuild
from atoll.servers.state.backup.take import Overtaken, Taken, seal, take
from atoll.servers.state.check import check
from atoll.servers.state.engine import Engine, Table
from atoll.servers.state.export import Record
from atoll.servers.state.history import History
from atoll.servers.state.keyspaces import Keyspaces
from atoll.servers.state.memory_engine import MemoryEngine
from tests.servers.state.kept import Kept

from .test_store_compaction_model import KEYSPACES, CompactionMachine


class Disturbed:
    """A store that goes on between any two blocks that are read of it."""

    def __init__(self, machine: "BackupMachine", disturbances: list[int]) -> None:
        self._machine = machine
        self._disturbances = iter(disturbances)

    def outline(self) -> Outline:
        return export.outline(self._machine.kept.server._engine)

    def records(self, upto: int, down_to: int, keyspaces: list[int]) -> Iterator[list[Record]]:
        engine = self._machine.kept.server._engine
        for block in export.blocks(engine, upto, down_to, frozenset(keyspaces)):
            yield block.records
            self._machine.disturb(next(self._disturbances, 0))


class BackupMachine(CompactionMachine):
    def see(self) -> None:
        """What the store itself gives is another test's."""

    def disturb(self, steps: int) -> None:
        """A bit of compaction, and a commit."""
        if not steps:
            return
        self.kept.hands.now += steps
        self.commit([(1 + steps % 2, {b"a": b"%d" % steps if steps % 3 else None}, 0)])
        self.begin_pass()
        for _ in range(steps):
            self.kept.step()

    @property
    def archive(self) -> Path:
        place = Path(self.folder.name) / "archive"
        place.mkdir(exist_ok=True)
        return place

    @rule(disturbances=strategies.lists(strategies.integers(0, 6), max_size=12), sealed=strategies.booleans())
    def back_up(self, disturbances: list[int], sealed: bool) -> None:
        """Not `sealed`: it is killed before it ends."""
        with suppress(Overtaken):
            self.taken(take(self.archive, "model", Disturbed(self, disturbances), ""), sealed)

    def taken(self, taken: Taken, sealed: bool) -> None:
        if not sealed:
            return
        took = seal(self.archive, taken)
        self._caught_up()
        engine = self.kept.server._engine
        self.known = getattr(self, "known", {})
        with engine.snapshot() as snapshot:
            cursor, ids = snapshot.cursor(Table.COMMITS), {}
            row = cursor.seek(b"")
            while row is not None:
                if int.from_bytes(row[1], "big") <= took.upto:
                    ids[row[0]] = row[1]
                row = cursor.next()
            self.known[took.upto] = ids
            self.horizons = {
                number: horizons.progress_of(snapshot, number).horizon for number in (0, *KEYSPACES)
            }
        self.newest = took.upto

    @precondition(lambda self: hasattr(self, "newest"))
    @rule(at=strategies.floats(0, 1))
    def restore_somewhere(self, at: float) -> None:
        self.restore(max(1, round(at * self.newest)))

    def left_between(self, first: int, last: int) -> list[int]:
        with self.kept.server._engine.snapshot() as snapshot:
            return [revision for revision, _ in snapshot.feed(first - 1) if revision <= last]

    def restore(self, revision: int | None) -> Engine | None:
        manifest = archive.existing(self.archive)
        covered = [(span.first, span.last) for span in archive.spans(manifest)]
        try:
            where = point(self.archive, manifest, revision)
        except Refused:
            assert revision is not None
            for first, last in covered:
                # Then nothing is left of all that was written from there on.
                assert not first <= revision <= last or not self.left_between(first, revision)
            return None
        model = MemoryEngine()
        rebuild(self.archive, manifest, where, model)
        assert check(model).breaches == []
        history = History(model, Keyspaces(model).name)
        assert history.head() == where.revision <= (revision or self.newest)
        for keyspace in KEYSPACES:
            with model.snapshot() as snapshot:
                horizon = horizons.progress_of(snapshot, keyspace).horizon
            assert horizon < where.revision
            if where.revision == self.newest:
                assert horizon <= self.horizons[keyspace]
            self.compare(history, keyspace, horizon, where.revision)
        with model.snapshot() as snapshot:
            for id, raw in self.known.get(where.revision, {}).items():
                assert snapshot.get(Table.COMMITS, id) == raw
            if where.revision == self.head:
                held = {(number, pin.name): pin.revision for number, pin in pins.everything(snapshot)}
                assert held == self.pins
        return model

    def compare(self, history: History, keyspace: int, horizon: int, last: int) -> None:
        prefix, end = layout.prefix(keyspace), layout.prefix(keyspace + 1)
        for revision in range(self.base, last + 1):
            try:
                page = history.range(prefix, end, 100, revision)
            except Compacted:
                assert revision < horizon
                continue
            assert {item.key[4:]: item.value for item in page.items} == self._contents(keyspace, revision)

    def teardown(self) -> None:
        if hasattr(self, "newest"):
            made = self.restore(None)
            assert made is not None
            restored = Kept(lambda: made)
            restored.hands.now = self.kept.hands.now
            self.leave_nothing(restored, self.newest)
            for revision in range(1, self.newest + 1):
                self.restore(revision)
        super().teardown()


class OnMemory(BackupMachine):
    def engine(self) -> Engine:
        return self.model


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few rows a snapshot of its own, so that much can happen within one backup."""
    monkeypatch.setattr(export, "WORK", 4)


@pytest.mark.timeout(600)
class TestBackups(OnMemory.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=60, stateful_step_count=30, deadline=None, phases=[Phase.generate])
