"""What the log before the database must not do: be put back under somebody's eyes, forget that the disk failed, bring back
what was taken away."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.servers.state import checkpoint
from atoll.servers.state.engine import Batch, Broken
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.write_ahead import encode, new_salt, newest

SMALL = {"limit": 64 << 20, "reserve": 0, "map_size": 256 << 20}
OPEN = """
import os, sys
from atoll.servers.state.engine import Batch
from atoll.servers.state.lmdb_engine import LmdbEngine

def events(engine):
    with engine.snapshot() as snapshot:
        return [position for position, _ in snapshot.feed(0)]

def opened(folder, **more):
    return LmdbEngine(folder, limit=64 << 20, reserve=0, map_size=256 << 20, **more)
"""
KILLED = (
    OPEN
    + """
engine = opened(sys.argv[1])
for position in range(1, int(sys.argv[2]) + 1):
    batch = Batch()
    batch.append(position, b"e")
    engine.commit(batch)
os.kill(os.getpid(), 9)
"""
)
KILLED_AT_A_CHECKPOINT = KILLED.replace(
    "os.kill",
    """
from atoll.servers.state.write_ahead import Head, new_salt
log, base = engine._log, int(engine._environment.info()["last_txnid"])
log._begin(Head(log._generation + 1, base, log._pages(base), False, new_salt()))
os.kill""",
)
"""When a segment was begun, and nothing is recorded there."""
RECOVERING = (
    OPEN
    + """
real = LmdbEngine._recover
def recover(self, batches):
    print(len(batches), flush=True)
    sys.stdin.readline()
    real(self, batches)
LmdbEngine._recover = recover
engine = opened(sys.argv[1])
print(events(engine), flush=True)
sys.stdin.readline()
"""
)
PUTTING_BACK = (
    OPEN
    + """
real = os.pwrite
def pwrite(descriptor, data, offset):
    real(descriptor, data[:len(data) // 2], offset)
    print("half", flush=True)
    sys.stdin.readline()
os.pwrite = pwrite
opened(sys.argv[1])
"""
)
"""Stays where a kill may leave it: of what it writes to the file only the first page has got there."""
READING = (
    OPEN
    + """
engine = opened(sys.argv[1], read_only=True)
print(events(engine), flush=True)
sys.stdin.readline()
"""
)

HOLDING = READING.replace(", read_only=True", "")
LEAVING_A_RECORD = (
    OPEN
    + """
engine = opened(sys.argv[1])
for position in (1, 2):
    batch = Batch()
    batch.append(position, b"e")
    engine.commit(batch)
print("there", flush=True)
sys.stdin.readline()
batch = Batch()
batch.append(3, b"e")
engine._log.append(int(engine._environment.info()["last_txnid"]) + 1, batch)
os.kill(os.getpid(), 9)
"""
)


def killed(folder: Path, count: int, program: str = KILLED) -> None:
    """A writer that made so many events durable and had no time to close the store."""
    subprocess.run([sys.executable, "-c", program, str(folder), str(count)], check=False)


def started(program: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def waits_for_a_file(pid: int) -> bool:
    """Whether a process waits until it may lock one whole."""
    waiting = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(line[2] == "FLOCK" and int(line[5]) == pid for line in waiting)


@pytest.mark.parametrize("count", [2, 3])
def test_who_reads_does_not_open_a_store_that_is_being_recovered(tmp_path: Path, count: int) -> None:
    """LMDB would take what was put back for what is, or its writer the page before that: for good."""
    killed(tmp_path, count)
    with started(RECOVERING, tmp_path) as writer:
        assert int(told(writer)) >= count
        with started(READING, tmp_path) as reader:
            while not waits_for_a_file(reader.pid):
                assert reader.poll() is None
            go_on(writer)
            assert told(writer) == told(reader) == str(list(range(1, count + 1)))
            go_on(reader)
        go_on(writer)
    assert (reader.returncode, writer.returncode) == (0, 0)
    assert not checkpoint.needs_recovery(tmp_path)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("program", [KILLED, KILLED_AT_A_CHECKPOINT], ids=["", "at a checkpoint"])
def test_what_was_put_back_is_brought_forward_though_somebody_reads_it(
    tmp_path: Path, count: int, program: str
) -> None:
    """The writer is killed in between, and a reader process, which does not see the log, opens what was put back. Before,
    the next writer took that for all there was."""
    store, reached = tmp_path / "store", tmp_path / "reached"
    LmdbEngine(store, **SMALL).close()
    killed(store, count, program)
    reached.mkdir()
    for name in (checkpoint.DATA_FILE, checkpoint.LOCK_FILE):
        os.link(store / name, reached / name)
    with started(RECOVERING, store) as writer:
        assert int(told(writer)) == count
        with started(READING, reached) as reader:
            while not waits_for_a_file(reader.pid):
                assert reader.poll() is None
            writer.kill()
            assert told(reader) == "[]"
            engine = LmdbEngine(store, **SMALL)
            with engine.snapshot() as snapshot:
                assert snapshot.bounds() == (1, count)
            engine.commit(one(count + 1))
            go_on(reader)
    engine.close()
    assert not checkpoint.needs_recovery(store)


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_half_put_back_is_not_taken_for_all_there_is(tmp_path: Path, count: int) -> None:
    """The writer is killed between the two pages, which leaves the state of one commit less, and a reader opens that.
    Before, the next writer dropped the last commit, for which somebody had an answer."""
    store, reached = tmp_path / "store", tmp_path / "reached"
    LmdbEngine(store, **SMALL).close()
    killed(store, count)
    reached.mkdir()
    for name in (checkpoint.DATA_FILE, checkpoint.LOCK_FILE):
        os.link(store / name, reached / name)
    with started(PUTTING_BACK, store) as writer:
        assert told(writer) == "half"
        with started(READING, reached) as reader:
            while not waits_for_a_file(reader.pid):
                assert reader.poll() is None
            writer.kill()
            assert told(reader)
            with pytest.raises(Broken, match="end whoever reads it"):
                LmdbEngine(store, **SMALL)
            go_on(reader)
    engine = LmdbEngine(store, **SMALL)
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (1, count)
    engine.close()


def one(position: int) -> Batch:
    batch = Batch()
    batch.append(position, b"e")
    return batch


def fails() -> checkpoint._Writing:
    """A write to the disk that does not get there: what cannot be synced is no file."""
    here, there = os.pipe()
    os.close(there)
    writing = checkpoint._Writing(here)
    writing._thread.join()
    os.close(here)
    return writing


def test_a_checkpoint_that_failed_is_not_made_up_for_by_the_next_one(tmp_path: Path) -> None:
    """The system tells of what it could not write once, and the thread has heard it."""
    engine = LmdbEngine(tmp_path, **SMALL)
    engine.commit(one(1))
    engine._log._writing = fails()
    engine._log._generation = 0  # as if another had written meanwhile: a segment is begun anew
    with pytest.raises(Broken):
        engine.commit(one(2))
    with pytest.raises(Broken):
        engine.commit(one(2))
    assert (tmp_path / checkpoint.FAILED_FILE).exists()
    engine._log._writing = None
    engine.close()


def test_a_store_whose_disk_failed_is_put_back_before_anyone_trusts_it(tmp_path: Path) -> None:
    killed(tmp_path, 3)
    with started(HOLDING, tmp_path) as holder:  # keeps what is in memory
        assert told(holder) == "[1, 2, 3]"
        (tmp_path / checkpoint.FAILED_FILE).touch()
        with pytest.raises(Broken, match="end whoever reads it"):
            LmdbEngine(tmp_path, limit=64 << 20, reserve=0, map_size=256 << 20)
        holder.kill()
    engine = LmdbEngine(tmp_path, limit=64 << 20, reserve=0, map_size=256 << 20)
    assert not (tmp_path / checkpoint.FAILED_FILE).exists()
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (1, 3)
    engine.close()


def test_who_opens_a_store_leaves_the_mark_of_a_disk_that_fails_another_meanwhile(tmp_path: Path) -> None:
    """As a new version does beside the old one, in a swap."""
    engine = LmdbEngine(tmp_path, **SMALL)
    engine.commit(one(1))
    with checkpoint.opening(tmp_path) as batches:
        assert not batches
        engine._log._writing = fails()
        engine._log._generation = 0
        with pytest.raises(Broken):
            engine.commit(one(2))
    with pytest.raises(Broken, match="not to be trusted"):
        LmdbEngine(tmp_path, **SMALL)
    engine._log._writing = None
    engine.close()
    LmdbEngine(tmp_path, **SMALL).close()
    assert not (tmp_path / checkpoint.FAILED_FILE).exists()


def test_a_record_that_was_never_shown_does_not_come_back(tmp_path: Path) -> None:
    """A power failure kept the record of a segment and not its head; the segment is begun again under the same number."""
    engine = LmdbEngine(tmp_path, **SMALL)
    engine.commit(one(1))
    log = engine._log
    generation = log._generation + 1
    head = log._segment.head()
    assert head is not None
    segment = log._segments[generation % len(log._segments)]
    last = int(engine._environment.info()["last_txnid"])
    cut_off = head._replace(generation=generation, base=last, salt=new_salt())
    segment.append(head.start, cut_off.mark, last + 1, encode(one(2)))
    log.checkpoint()
    found = newest(log._segments)
    assert found is not None
    assert (found[1].generation, found[1].base) == (generation, last)
    assert list(found[0].records(found[1])) == []
    engine.close()


def fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's file cannot be written to the disk, of which the system tells whoever asks first, and nobody after."""
    told = list[int]()

    def failing(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            if not told and os.readlink(f"/proc/self/fd/{descriptor}").endswith(checkpoint.DATA_FILE):
                told.append(descriptor)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(descriptor)

        return sync

    monkeypatch.setattr(os, "fdatasync", failing(os.fdatasync))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))


def test_a_disk_that_fails_within_recovery_is_not_trusted_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader keeps the database open, so the next one would go on with what is in memory, and begin the log anew above it:
    on the disk neither would be."""
    LmdbEngine(tmp_path, **SMALL).close()
    with started(LEAVING_A_RECORD, tmp_path) as writer:
        assert told(writer) == "there"
        with started(READING, tmp_path) as reader:
            assert told(reader) == "[1, 2]"
            go_on(writer)
            writer.wait()
            fails_once(monkeypatch)
            with pytest.raises(Broken):
                LmdbEngine(tmp_path, **SMALL)
            with pytest.raises(Broken, match="end whoever reads it"):
                LmdbEngine(tmp_path, **SMALL)
            go_on(reader)
    engine = LmdbEngine(tmp_path, **SMALL)
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (1, 3)
    engine.close()


def test_a_disk_that_fails_as_a_store_is_closed_is_not_trusted_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LmdbEngine(tmp_path, **SMALL)
    engine.commit(one(1))
    with started(READING, tmp_path) as reader:
        assert told(reader) == "[1]"
        fails_once(monkeypatch)
        with pytest.raises(Broken):
            engine.close()
        with pytest.raises(Broken, match="end whoever reads it"):
            LmdbEngine(tmp_path, **SMALL)
        go_on(reader)
    engine = LmdbEngine(tmp_path, **SMALL)
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (1, 1)
    engine.close()


def test_a_disk_that_fails_as_a_store_is_made_longer_is_not_trusted_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {"limit": 256 << 20, "reserve": 64 << 20, "map_size": 512 << 20}
    LmdbEngine(tmp_path, **SMALL).close()
    with started(READING, tmp_path) as reader:
        assert told(reader) == "[]"
        fails_once(monkeypatch)
        with pytest.raises(Broken):
            LmdbEngine(tmp_path, **longer)
        with pytest.raises(Broken, match="end whoever reads it"):
            LmdbEngine(tmp_path, **longer)
        go_on(reader)
    LmdbEngine(tmp_path, **longer).close()
