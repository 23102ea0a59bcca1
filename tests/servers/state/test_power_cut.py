"""The power fails at any moment, with any part of what was not synced on the disk: what was acknowledged is there, and the
store is whole. So it is when it fails again while the store is being recovered.

The writes are those of a real writer, with a checkpoint every few groups. That these tests would notice is itself tested:
a writer that leaves out one thing that durability rests on loses something.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest

from atoll.servers.state.check import check_folder
from atoll.servers.state.lmdb_engine import STEP, LmdbEngine
from tests.kit.preloaded import preloaded

from .power import Disk, Note, notes_of
from .test_crash import acknowledged, holds

WRITER = """
import os, random, sys
from atoll.ipc.deferred import Deferred
from atoll.ipc.system.state import Committed
from atoll.servers.state import checkpoint, layout
from atoll.servers.state.engine import Table
from atoll.servers.state.group import Group, Transaction
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.ownership import Ownership, settle_format
from atoll.servers.state.write_ahead import Segment

folder, groups, planted = sys.argv[1], int(sys.argv[2]), sys.argv[3]
checkpoint.OFTEN = checkpoint.SELDOM = 600_000
match planted:
    case "no record is synced":
        Segment.sync = lambda self: None
    case "nothing is pinned":
        real = checkpoint.Log._begin
        def begin(self, head):
            real(self, head)
            self._pins.pop().abort()
        checkpoint.Log._begin = begin
    case "settled before it is":
        checkpoint._Writing._run = lambda self, descriptor: setattr(self, "_written", True)
engine = LmdbEngine(folder, limit=256 << 20, reserve=0, map_size=1 << 30)
settle_format(engine)
history = History(engine, str)
prefix = layout.prefix(0)
chance = random.Random(5)

class Anybodys(Ownership):
    bind = lambda self, batch: batch.put(Table.META, layout.OWNER_KEY, bytes(16))

def commit(group):
    outcomes = []
    for member in range(chance.choice([1, 1, 4])):
        revision = history.head() + 1 + member
        value = b"%d " % revision * chance.choice([1, 300])
        names = {b"k%d" % chance.randrange(400) for _ in range(3)}
        done = Deferred()
        done.react(outcomes.append, outcomes.append)
        id = prefix + b"%d" % revision
        group.admit(Transaction(0, [(prefix + name, value) for name in names], [], id=id), done)
    group.flush()
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    os.write(1, b"%d\\n" % outcomes[-1].revision)

if planted == "in turn":
    for line in sys.stdin:
        group = Group(history, Anybodys(engine, 1), lambda written: None)
        for number in range(int(line)):
            commit(group)
else:
    group = Group(history, Ownership(engine, 1), lambda written: None)
    for number in range(groups):
        commit(group)
if planted in ("closed", "in turn"):
    engine.close()
"""
OPENER = """
import sys
from atoll.servers.state.lmdb_engine import LmdbEngine

LmdbEngine(sys.argv[1], map_size=1 << 30, limit=256 << 20, reserve=0)
"""


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    source = Path(__file__).with_name("writes.c")
    with preloaded(source, "WRITES", tmp_path, monkeypatch) as path:
        yield path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For images: in memory, where syncing them takes no time."""
    shared = Path("/dev/shm")
    made = shared / f"atoll-images-{os.getpid()}" if shared.is_dir() else tmp_path / "images"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def notes(orders: Path, program: str, *words: str) -> list[Note]:
    """What a program writes to a store."""
    orders.write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return notes_of(orders)


def lay(folder: Path, image: dict[str, bytes]) -> Path:
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    for name, data in image.items():
        (store / name).write_bytes(data)
    # As it was preallocated.
    os.truncate(store / "data.mdb", -(-len(image["data.mdb"]) // STEP) * STEP)
    return store


def after(folder: Path, image: dict[str, bytes], last: int) -> None:
    """Asserts that nothing up to a revision is missing, and that the store is whole and can be written."""
    store = lay(folder, image)
    head = holds(store, last)
    report = check_folder(store)
    assert not report.breaches, report.breaches[:3]
    assert report.revisions == head


def acknowledging(written: list[Note]) -> range:
    """All moments from the first acknowledgement on, by how many notes there were before."""
    return range(next(at for at, note in enumerate(written) if note.kind == "s"), len(written) + 1)


def cuts(written: list[Note], count: int, chance: random.Random) -> Iterator[tuple[dict[str, bytes], int]]:
    """Images at so many moments, and the last revision acknowledged by then."""
    among = acknowledging(written)
    return cuts_at(written, sorted(chance.randrange(among.start, among.stop) for _ in range(count)), chance)


def cuts_at(
    written: list[Note], moments: Iterable[int], chance: random.Random
) -> Iterator[tuple[dict[str, bytes], int]]:
    """Images at moments, which rise."""
    disk, passed = Disk(), 0
    for moment in moments:
        for note in written[passed:moment]:
            disk.take(note)
        passed = moment
        yield disk.image(chance), acknowledged(disk.said)


def test_nothing_acknowledged_is_lost(orders: Path, folder: Path, tmp_path: Path) -> None:
    written = notes(orders, WRITER, str(tmp_path / "store"), "150", "")
    assert sum(note.kind == "b" and note.name == "data.mdb" for note in written) > 10, "no checkpoints"
    for image, last in cuts(written, 40, random.Random(1)):
        after(folder, image, last)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_nothing_acknowledged_is_lost_at_length(
    orders: Path, folder: Path, tmp_path: Path, seed: int
) -> None:
    written = notes(orders, WRITER, str(tmp_path / "store"), "600", "")
    for image, last in cuts(written, 1000, random.Random(seed)):
        after(folder, image, last)


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_wherever_it_is_cut(orders: Path, folder: Path, tmp_path: Path) -> None:
    """Each moment of a short recording, three times: what was not synced is there in part, and each time another one."""
    written = notes(orders, WRITER, str(tmp_path / "store"), "60", "")
    assert sum(note.kind == "e" and note.name == "data.mdb" for note in written) > 2, "no checkpoints"
    moments = [moment for moment in acknowledging(written) for _ in range(3)]
    for image, last in cuts_at(written, moments, random.Random(6)):
        after(folder, image, last)


def test_the_power_fails_again_while_it_is_recovered(orders: Path, folder: Path, tmp_path: Path) -> None:
    chance = random.Random(2)
    written = notes(orders, WRITER, str(tmp_path / "store"), "80", "")
    for image, last in cuts(written, 6, chance):
        again = notes(orders, OPENER, str(lay(folder, image)))
        for moment in [chance.randrange(len(again) + 1) for _ in range(12)]:
            disk = Disk(image)
            for note in again[:moment]:
                disk.take(note)
            after(folder, disk.image(chance), last)


def test_two_processes_write_in_turn(orders: Path, folder: Path, tmp_path: Path) -> None:
    """As in a swap that is taken back, and then goes on: each finds the log as the other left it."""
    chance = random.Random(3)
    words = [sys.executable, "-c", WRITER, str(tmp_path / "store"), "0", "in turn"]
    orders.write_bytes(b"")
    said = b""
    with ExitStack() as running:
        two: list[subprocess.Popen[bytes]] = []
        for turn in range(30):
            if turn < 2:  # the first one has made the store when the second one comes
                popen = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                two.append(running.enter_context(popen))
            writer, groups = two[turn % 2], chance.choice([1, 2, 9])
            assert writer.stdin is not None and writer.stdout is not None
            writer.stdin.write(b"%d\n" % groups)
            writer.stdin.flush()
            said += b"".join(writer.stdout.readline() for _ in range(groups))
        first = two[0].communicate()
        assert first == (b"", None) and two[0].returncode == 0
        two[1].kill()
    written = notes_of(orders)
    for image, last in cuts(written, 40, random.Random(4)):
        after(folder, image, last)
    assert holds(tmp_path / "store", acknowledged(said)) == acknowledged(said)


@pytest.mark.parametrize("planted", ["no record is synced", "nothing is pinned", "settled before it is"])
def test_what_is_left_out_is_noticed(orders: Path, folder: Path, tmp_path: Path, planted: str) -> None:
    written = notes(orders, WRITER, str(tmp_path / "store"), "150", planted)

    def look() -> None:
        for image, last in cuts(written, 40, random.Random(1)):
            after(folder, image, last)

    # LMDB may take whoever reads pages that are not what they were with it.
    child = get_context("fork").Process(target=look)
    child.start()
    child.join()
    assert child.exitcode != 0


def test_a_store_that_was_closed_needs_no_log(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), "40", "closed"], capture_output=True, check=True
    )
    for log in folder.glob("log.*"):
        log.unlink()
    (folder / "lock.mdb").unlink()
    head = holds(folder, acknowledged(done.stdout))
    assert check_folder(folder).revisions == head
    LmdbEngine(folder, map_size=1 << 30).close()
