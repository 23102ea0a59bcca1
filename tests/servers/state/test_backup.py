"""A backup that is killed, finds no room, or is tampered with: what was there before is whole, what is wrong is named."""

import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies

from atoll.ipc import clock
from atoll.ipc.errors import NotAllowed
from atoll.ipc.system.state import Outline, Retention, State, Write
from atoll.servers.state import export, layout
from atoll.servers.state.backup import archive
from atoll.servers.state.backup.faults import Damaged, NoRoom, Refused
from atoll.servers.state.backup.restore import point, restore
from atoll.servers.state.backup.take import seal, stopped, take
from atoll.servers.state.backup.verify import verify
from atoll.servers.state.export import Record
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.versions import time_of
from tests.kit.disk import fill, small_disk
from tests.kit.dying import survives

from .kept import Kept


class Held:
    """A store in memory, and what was committed to it."""

    def __init__(self) -> None:
        engine = MemoryEngine()
        self.kept = Kept(lambda: engine)
        self.engine = engine
        self.rows: State = self.kept.keyspace_state("rows")
        self.random = random.Random(1)
        self.log: dict[int, dict[bytes, bytes]] = {self.head: {}}

    @property
    def head(self) -> int:
        return self.outline().head

    def outline(self) -> Outline:
        return export.outline(self.engine)

    def records(self, upto: int, down_to: int, keyspaces: list[int]) -> Iterator[list[Record]]:
        for block in export.blocks(self.engine, upto, down_to, frozenset(keyspaces)):
            yield block.records

    def write(self, count: int, size: int = 300) -> None:
        """Commits that read differently, of values that do not compress."""
        now = dict(self.log[max(self.log)])
        for number in range(count):
            key = b"key %d" % self.random.randrange(20)
            value = self.random.randbytes(size)
            writes = [Write(key, value)]
            now[key] = value
            if number % 7 == 3 and len(now) > 5:
                gone = sorted(now)[0]
                writes.append(Write(gone, None))
                del now[gone]
            revision = self.rows.commit.start(writes, id=b"%d" % self.head).result().revision
            self.log[revision] = dict(now)

    def back_up(self, folder: Path) -> int:
        folder.mkdir(exist_ok=True)
        return seal(folder, take(folder, "held", self, "")).upto

    def is_refused(self, folder: Path, whole: int) -> bool:
        """Whether there is no room for a backup, which is said, and that an earlier one is whole."""
        try:
            self.back_up(folder)
        except NoRoom as error:
            told = str(error)
        else:
            return False
        assert f"the backup that reaches revision {whole} is whole; free room there" in told
        return True

    def compare(self, folder: Path, place: Path, at: int | None = None) -> int:
        """That what is restored reads as this did then, and as of all before; gives the revision."""
        made = restore(folder, place, at)
        engine = LmdbEngine(place, read_only=True)
        try:
            history = History(engine, str)
            for revision in sorted(self.log):
                if revision <= made.revision:
                    page = history.range(b"\0\0\0\1", b"\0\0\0\2", 100, revision)
                    assert {item.key[4:]: item.value for item in page.items} == self.log[revision]
        finally:
            engine.close()
        shutil.rmtree(place)
        return made.revision


def test_killed_at_every_step(tmp_path: Path) -> None:
    held, folder = Held(), tmp_path / "archive"
    held.write(30)
    first = held.back_up(folder)
    held.write(30)
    killed = 0
    while not survives(killed, partial(held.back_up, folder)):
        killed += 1
        assert archive.existing(folder).segments[-1].upto in (first, held.head)
        assert held.compare(folder, tmp_path / "restored") in (first, held.head)
    assert killed >= 10
    assert held.compare(folder, tmp_path / "restored") == held.head
    assert sorted(path.name for path in folder.iterdir()) == ["manifest", "rows"]
    assert verify(folder).breaches == []


def test_a_full_disk_leaves_the_former_backup(tmp_path: Path) -> None:
    held = Held()
    held.write(20)
    with small_disk(tmp_path / "small", "size=6m") as disk:
        folder = disk / "archive"
        first = held.back_up(folder)
        held.write(100, 4000)
        stuffing = disk / "stuffing"
        refused = 0
        for room in range(0, 600, 60):
            fill(stuffing)
            os.truncate(stuffing, max(0, stuffing.stat().st_size - (room << 10)))
            refused += held.is_refused(folder, first)
            assert archive.existing(folder).segments[-1].upto in (first, held.head)
            assert held.compare(folder, tmp_path / "restored") in (first, held.head)
        assert refused > 2
        stuffing.unlink()
        assert held.back_up(folder) == held.head
        fill(stuffing)
        with pytest.raises(NoRoom, match="nothing was restored"):
            restore(folder, disk / "restored", None)
    assert held.head


def test_another_history_is_refused(tmp_path: Path) -> None:
    held, other, folder = Held(), Held(), tmp_path / "archive"
    held.write(10)
    held.back_up(folder)
    other.write(20)
    with pytest.raises(Refused, match="holds backups of another store"):
        other.back_up(folder)


def test_a_file_that_was_put_back_is_refused(tmp_path: Path) -> None:
    """The same store, with an older file: revisions after the backup's are not the ones that it has."""
    held, folder, place = Held(), tmp_path / "archive", tmp_path / "store"
    engines: list[LmdbEngine] = []

    def make() -> LmdbEngine:
        engines.append(LmdbEngine(place, map_size=1 << 30, limit=256 << 20))
        return engines[-1]

    kept = Kept(make)
    rows = kept.keyspace_state("rows")
    rows.commit.start([Write(b"a", b"1")]).result()
    engines[-1].close()
    shutil.copytree(place, tmp_path / "older")
    for value, count in ((b"2", 1), (b"3", 2)):
        kept.server = kept._start()
        for _ in range(count):
            kept.state(1).commit.start([Write(b"a", value)]).result()
        engines[-1].close()
        if value == b"2":
            folder.mkdir()
            with stopped(place) as (source, _):
                seal(folder, take(folder, "kept", source, ""))
            shutil.rmtree(place)
            shutil.copytree(tmp_path / "older", place)
    with (
        stopped(place) as (source, _),
        pytest.raises(Refused, match="its file was put back; name a new folder"),
    ):
        take(folder, "kept", source, "")
    assert held.head


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    held, folder = Held(), tmp_path_factory.mktemp("sealed") / "archive"
    held.write(200, 2000)
    held.back_up(folder)
    held.write(200, 20_000)
    held.back_up(folder)
    return folder


@settings(max_examples=60, deadline=None)
@given(
    place=strategies.floats(0, 1, exclude_max=True), bit=strategies.integers(0, 7), cut=strategies.booleans()
)
def test_any_bit_is_missed(sealed: Path, place: float, bit: int, cut: bool) -> None:
    """A bit flipped, or an end cut off, anywhere in a segment, is found and named by file and byte."""
    path = max((sealed / "rows").iterdir(), key=lambda each: each.stat().st_size)
    whole = path.read_bytes()
    at = int(place * len(whole))
    torn = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    try:
        path.write_bytes(torn)
        breaches = verify(sealed).breaches
    finally:
        path.write_bytes(whole)
    (breach,) = breaches
    assert breach.startswith(f"{path}: at byte ")
    assert int(breach.removeprefix(f"{path}: at byte ").split(":")[0]) <= max(at, len(whole) - 40)


def test_a_segment_that_is_missing(sealed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sealed, tmp_path / "archive")
    last = archive.existing(folder).segments[-1]
    (folder / "rows" / last.file).unlink()
    with pytest.raises(Damaged, match=f"{last.file} is missing"):
        restore(folder, tmp_path / "restored", None)
    assert restore(folder, tmp_path / "restored", last.after).revision == last.after


def test_a_manifest_that_was_changed(sealed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sealed, tmp_path / "archive")
    manifest = folder / "manifest"
    whole = manifest.read_bytes()
    for changed in (whole.replace(b'"upto":4', b'"upto":3', 1), whole[:-9], b"\xff" + whole, b"{}"):
        assert changed != whole
        manifest.write_bytes(changed)
        with pytest.raises(Damaged, match=f"{manifest}: at byte 0: "):
            verify(folder)


def test_a_later_format_is_refused(sealed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sealed, tmp_path / "archive")
    manifest = archive.existing(folder)
    archive.put(folder, msgspec.structs.replace(manifest, format=archive.FORMAT + 1))
    with pytest.raises(
        Refused, match="has format 2, this version reads up to 1: use the version that wrote it"
    ):
        restore(folder, tmp_path / "restored", None)


def test_nothing_new(sealed: Path, tmp_path: Path) -> None:
    held, folder = Held(), tmp_path / "archive"
    held.write(5)
    first = held.back_up(folder)
    assert held.back_up(folder) == first
    assert len(archive.existing(folder).segments) == 1


def test_moments_by_time(tmp_path: Path) -> None:
    held, folder = Held(), tmp_path / "archive"
    for _ in range(3):
        held.kept.hands.now += 100
        held.write(3)
        held.back_up(folder)
    with held.engine.snapshot() as snapshot:
        times = {revision: layout.time_of(raw) for revision, raw in snapshot.feed(0)}
    manifest = archive.existing(folder)
    for revision, time in times.items():
        after = times.get(revision + 1, time + 10**9)
        assert point(folder, manifest, (time + after) / 2 / 1e9).revision == revision
    with pytest.raises(Refused, match="is not in the backup, which covers revisions 1 to"):
        point(folder, manifest, (times[1] - 10**9) / 1e9)
    with pytest.raises(Refused, match="is not in the backup"):
        point(folder, manifest, clock.wall() + 1000)


class Busy(Held):
    """Commits as soon as it was said what there is to be copied."""

    busy = False

    def outline(self) -> Outline:
        found = super().outline()
        self.kept.hands.now = clock.wall()
        if self.busy:
            self.busy = False
            self.write(1)
        return found


@pytest.mark.parametrize("before", [False, True])
def test_no_moment_is_covered_after_which_more_was_committed(tmp_path: Path, before: bool) -> None:
    """Before, a moment behind a commit that the backup has not could be restored, without that commit."""
    held, folder = Busy(), tmp_path / "archive"
    held.write(3)
    if before:
        held.back_up(folder)
    held.busy = True
    reached = held.back_up(folder)
    assert reached < held.head
    with held.engine.snapshot() as snapshot:
        late = time_of(snapshot, reached + 1)
    with pytest.raises(Refused, match="is not in the backup"):
        point(folder, archive.existing(folder), (late + 1000) / 1e9)


def test_large_transactions_come_in_parts(tmp_path: Path) -> None:
    held, folder = Held(), tmp_path / "archive"
    held.write(3)
    many = {b"many %04d" % number: b"%d" % number * (number % 90) for number in range(3000)}
    revision = held.rows.commit.start([Write(key, value) for key, value in many.items()]).result().revision
    held.log[revision] = held.log[max(held.log)] | many
    held.write(3)
    held.back_up(folder)
    restored = restore(folder, tmp_path / "restored", None)
    assert restored.revision == held.head
    engine = LmdbEngine(tmp_path / "restored", read_only=True)
    history = History(engine, str)
    found = {key: history.get(b"\0\0\0\1" + key) for key in many}
    engine.close()
    assert {key: item and item.value for key, item in found.items()} == many


def test_what_compaction_took_between_two_backups_stays_away(tmp_path: Path) -> None:
    """A key is deleted, and its deletion compacted, between two backups: it does not come back."""
    held, folder = Held(), tmp_path / "archive"
    rows = held.kept.keyspace_state("passing", Retention(age=0.0))
    rows.commit.start([Write(b"gone", b"x"), Write(b"stays", b"1" * 200)]).result()
    held.back_up(folder)
    rows.commit.start([Write(b"gone", None)]).result()
    rows.commit.start([Write(b"other", b"y")]).result()
    held.kept.hands.now += 100
    rows.commit.start([Write(b"last", b"z")]).result()
    held.kept.compact()
    assert rows.history.start(b"gone").result() == []
    held.back_up(folder)
    restore(folder, tmp_path / "restored", None)
    engine = LmdbEngine(tmp_path / "restored", read_only=True)
    page = History(engine, str).range(b"\0\0\0\2", b"\0\0\0\3", 100)
    engine.close()
    assert [item.key[4:] for item in page.items] == [b"last", b"other", b"stays"]


def test_a_moment_of_which_nothing_is_left_is_not_the_one_before_it(tmp_path: Path) -> None:
    """Before, what stood at the end of the backup before was restored for it, with a row that had been deleted by then."""
    held, folder = Held(), tmp_path / "archive"
    held.kept.hands.now = clock.wall()
    short = held.kept.keyspace_state("short", Retention(age=1.0))
    short.commit.start([Write(b"gone", b"1")]).result()
    held.write(2)
    before = held.back_up(folder)
    for write in (Write(b"gone"), Write(b"too", b"1"), Write(b"too")):
        deleted = short.commit.start([write]).result()
    held.kept.hands.now += 100
    held.write(1)
    held.kept.compact()
    held.back_up(folder)
    manifest = archive.existing(folder)
    assert (manifest.segments[-1].after, manifest.segments[-1].floor) == (before, deleted.revision)
    for at in (before + 1, deleted.revision, deleted.time / 1e9 + 50):
        with pytest.raises(Refused, match="is not in the backup"):
            point(folder, manifest, at)
    assert point(folder, manifest, before).revision == before


def test_a_moment_before_a_backup_began_is_as_it_says_whatever_compaction_took_later(tmp_path: Path) -> None:
    """Before, such a moment was restored until the next backup was made, and refused from then on."""
    held, folder = Held(), tmp_path / "archive"
    short = held.kept.keyspace_state("short", Retention(age=1.0))
    held.kept.hands.now = clock.wall() - 100
    held.write(1)
    before = held.back_up(folder)
    quiet = clock.wall() - 50
    assert point(folder, archive.existing(folder), quiet).revision == before
    held.kept.hands.now += 200
    for write in (Write(b"too", b"1"), Write(b"too")):
        short.commit.start([write]).result()
    held.kept.hands.now += 100
    held.write(1)
    held.kept.compact()
    held.back_up(folder)
    assert archive.existing(folder).segments[-1].floor > before
    assert point(folder, archive.existing(folder), quiet).revision == before


def test_who_may_not_copy_the_store() -> None:
    held = Held()
    with pytest.raises(NotAllowed):
        held.rows.outline.start().result()
