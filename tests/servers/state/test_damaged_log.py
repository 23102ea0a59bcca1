"""A log that is damaged is refused with a sentence, for without what is missing the store might look whole; and so is a
store with a log by a version of Atoll that knows of none."""

import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from atoll.servers.state import checkpoint, layout
from atoll.servers.state.engine import Broken, Table
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.ownership import FormatRefused, Ownership, settle_format
from atoll.servers.state.write_ahead import FILES, Segment, newest

from .power import Disk
from .test_crash import acknowledged, holds
from .test_log import OPEN, SMALL, killed, one
from .test_power_cut import WRITER, folder, lay, notes, orders

__all__ = ["folder", "orders"]  # fixtures


def begun(folder: Path) -> list[Segment]:
    """The segments of a log, the newest first."""
    segments = [Segment(folder / name, read_only=True) for name in FILES]
    return sorted(segments, key=lambda segment: -segment.generation())


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def killed_store(tmp_path: Path) -> Path:
    """Five events in the log of a store that was not closed."""
    killed(tmp_path / "store", 5)
    return tmp_path / "store"


def record_at(segment: Segment, number: int) -> int:
    """Where in a segment the record of that number lies, the first being 0."""
    head = segment.head()
    assert head is not None
    offset = head.start
    for _, body in list(segment.records(head))[:number]:
        offset += head.around + len(body)
    return offset


@pytest.mark.parametrize("offset", [3, 17, 5000])
def test_a_head_that_is_damaged_is_refused(killed_store: Path, offset: int) -> None:
    """The generation, the base, the pages."""
    damage(begun(killed_store)[0].path, offset)
    for read_only in (False, True):
        with pytest.raises(
            Broken, match=r"its beginning is damaged: restore a backup|the end of the log is lost"
        ):
            LmdbEngine(killed_store, read_only=read_only, **SMALL)


def test_a_record_that_is_damaged_is_refused_if_one_follows(killed_store: Path) -> None:
    segment = begun(killed_store)[0]
    damage(segment.path, record_at(segment, 1) + 30)
    with pytest.raises(Broken, match="is not whole, and there is one after it; restore a backup"):
        LmdbEngine(killed_store, **SMALL)


def test_a_log_that_ends_before_its_database_is_refused(killed_store: Path) -> None:
    """The newest record, of a transaction that the database has."""
    segment = begun(killed_store)[0]
    head = segment.head()
    assert head is not None
    count = len(list(segment.records(head)))
    damage(segment.path, record_at(segment, count - 1) + 30)
    with pytest.raises(Broken, match=r"its log ends at \d+: the end of the log is lost"):
        LmdbEngine(killed_store, **SMALL)


def test_after_a_power_failure_damage_is_refused_or_costs_nothing(
    orders: Path, folder: Path, tmp_path: Path
) -> None:
    """A byte of the log anywhere but where a write may as well have been cut short."""
    chance = random.Random(6)
    written = notes(orders, WRITER, str(tmp_path / "store"), "120", "")
    first = next(at for at, note in enumerate(written) if note.kind == "s")
    refused = opened = 0
    disk, passed = Disk(), 0
    for moment in sorted(chance.randrange(first, len(written) + 1) for _ in range(40)):
        for note in written[passed:moment]:
            disk.take(note)
        passed = moment
        last = acknowledged(disk.said)
        store = lay(folder, disk.image(chance))
        path, offset = somewhere(store, chance)
        damage(path, offset)
        try:
            LmdbEngine(store, limit=256 << 20, reserve=0, map_size=1 << 30).close()
        except Broken:
            refused += 1
        else:
            holds(store, last)
            opened += 1
    assert refused > 5 and opened > 5


def somewhere(store: Path, chance: random.Random) -> tuple[Path, int]:
    """A place in a head, in the pages after it, or in a record; but in no last record, nor before an only one."""
    places: list[tuple[Path, range]] = []
    for segment in begun(store):
        head = segment.head()
        count = 0 if head is None else len(list(segment.records(head)))
        if count != 1:
            places += [(segment.path, range(min(end, segment.size))) for end in (44, 4096 + 8192)]
        places += [
            (segment.path, range(record_at(segment, number - 1), record_at(segment, number)))
            for number in range(1, count)
        ]
    path, offsets = chance.choice([place for place in places if place[1]])
    return path, chance.choice(offsets)


# formats ----------------------------------------------------------------------------------------------------------


def form_on_disk(folder: Path) -> int:
    """The format as who knows nothing of the log finds it: in the database as of its last checkpoint."""
    copy = folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    found = newest(begun(folder))
    assert found is not None
    _, head = found
    shutil.copyfile(folder / "data.mdb", copy / "data.mdb")
    with (copy / "data.mdb").open("r+b") as file:
        file.write(head.pages)
    with lmdb.open(str(copy), max_dbs=8) as environment, environment.begin() as transaction:
        meta = environment.open_db(b"meta", txn=transaction, create=False)
        return int.from_bytes(transaction.get(b"format", db=meta) or b"", "big")


def older(folder: Path) -> LmdbEngine:
    """A store of format 1, as a version wrote it that knew of no log, and closed it."""
    engine = LmdbEngine(folder, **SMALL)
    settle_format(engine, latest=1)
    engine.close()
    return LmdbEngine(folder, **SMALL)


def test_an_older_atoll_refuses_a_store_that_has_a_log(tmp_path: Path) -> None:
    engine = LmdbEngine(tmp_path / "store", **SMALL)
    settle_format(engine)
    for older_latest in (1, 2, 3):
        with pytest.raises(
            FormatRefused, match=f"the store has format 4, this version reads up to {older_latest}"
        ):
            settle_format(engine, latest=older_latest)
    assert form_on_disk(tmp_path / "store") == layout.FORMAT
    engine.close()


def test_a_store_of_an_older_format_is_raised_before_anything_is_in_its_log_alone(tmp_path: Path) -> None:
    engine = older(tmp_path / "store")
    assert settle_format(engine) == "the store has format 1"
    ownership = Ownership(engine, 1)
    assert form_on_disk(tmp_path / "store") == 1  # a new version that is taken back has changed nothing
    batch = one(1)
    ownership.bind(batch)
    assert form_on_disk(tmp_path / "store") == layout.FORMAT
    engine.commit(batch)
    ownership.bound()
    assert settle_format(engine) == f"the store has format {layout.FORMAT}"
    engine.close()


# what LMDB does by itself -----------------------------------------------------------------------------------------

LACKING = (
    OPEN
    + """
from atoll.servers.state import lmdb_engine
tables = lmdb_engine._TABLES
lmdb_engine._TABLES = tables[:2] + tables[4:]
engine = opened(sys.argv[1])
for position in range(1, 4):
    batch = Batch()
    batch.append(position, b"e")
    engine.commit(batch)
print("made", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""
)
"""A version that knows two tables less."""
OPENER = (
    OPEN
    + """
engine = opened(sys.argv[1])
print(events(engine), flush=True)
os.kill(os.getpid(), 9)
"""
)


@pytest.mark.parametrize("beside", [True, False])
def test_a_table_that_a_store_lacks_is_made_by_the_log(tmp_path: Path, beside: bool) -> None:
    """By a version that knows it, beside the one that does not or after its end; both are killed, and it is all there."""
    folder = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", LACKING, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as before:
        assert before.stdout is not None and before.stdout.readline() == "made\n"
        if not beside:
            before.communicate("\n")
        opener = subprocess.run(
            [sys.executable, "-c", OPENER, str(folder)], capture_output=True, text=True, check=False
        )
        assert opener.stdout == "[1, 2, 3]\n", opener.stderr
        with suppress(ValueError):
            before.communicate("\n")
    assert ends_of(folder)[0] <= ends_of(folder)[1]
    engine = LmdbEngine(folder, **SMALL)
    with engine.snapshot() as snapshot:
        assert [position for position, _ in snapshot.feed(0)] == [1, 2, 3]
        assert snapshot.get(Table.COMMITS, b"none") is None
    engine.close()


def ends_of(folder: Path) -> tuple[int, int]:
    """The newest transaction of the database, and that of the log."""
    pages = (folder / "data.mdb").read_bytes()[:8192]
    found = newest(begun(folder))
    assert found is not None
    records = [number for number, _ in found[0].records(found[1])]
    return checkpoint._newest_of(pages), max(records, default=found[1].base)


LOCKED = """
import sys
from pathlib import Path
from atoll.servers.state import checkpoint

print(checkpoint._is_open(Path(sys.argv[1])))
"""


def test_whoever_looks_leaves_the_locks_of_a_database_that_is_open_alone(tmp_path: Path) -> None:
    """Else the next process takes itself for the only one, and puts back what is under our eyes."""
    engine = LmdbEngine(tmp_path, **SMALL)
    engine.commit(one(1))
    assert not checkpoint.needs_recovery(tmp_path)
    with pytest.raises(lmdb.Error):  # it is open here already
        LmdbEngine(tmp_path, **SMALL)
    looked = subprocess.run([sys.executable, "-c", LOCKED, str(tmp_path)], capture_output=True, check=True)
    assert looked.stdout == b"True\n"
    engine.commit(one(2))
    engine.close()
    looked = subprocess.run([sys.executable, "-c", LOCKED, str(tmp_path)], capture_output=True, check=True)
    assert looked.stdout == b"False\n"


def test_the_names_of_a_stores_files_are_on_the_disk_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made them may have died just before."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "store"
    LmdbEngine(folder, **SMALL).close()
    assert {str(folder), str(tmp_path)} <= set(synced)
    synced.clear()
    LmdbEngine(folder, **SMALL).close()
    assert str(folder) in synced
