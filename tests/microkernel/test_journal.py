"""The boot journal: what was acknowledged is there, whatever byte a crash stopped at."""

import errno
import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.system.records import EventRow
from atoll.microkernel.changes import Batch
from atoll.microkernel.journal import Journal, JournalDamaged, create, frame, open_


def batch(number: int) -> Batch:
    row = EventRow(boot=1, sequence=number, time=number, kind="test", who="me", sentence="it was")
    return Batch(b"%d" % number, note="test").put(row)


def fill(path: Path) -> Journal:
    journal = create(path, "node", 7)
    journal.boot(10)
    journal.wait(batch(1).changes())
    journal.wait(batch(2).changes())
    journal.settle(batch(1).changes().id)
    return journal


def says(journal: Journal) -> tuple[object, ...]:
    return journal.identity, journal.epoch, dict(journal.waiting)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    written = fill(tmp_path / "journal")
    written.close()
    read = open_(tmp_path / "journal")
    assert says(read) == says(written)
    assert list(read.waiting.values()) == [batch(2).changes()]
    assert (read.epoch, read.cut) == (1, 0)
    read.close()


def test_a_crash_at_any_byte_loses_nothing_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = create(path, "node", 7)
    states = [(journal.end, says(journal))]
    for step in (
        lambda: journal.boot(10),
        lambda: journal.wait(batch(1).changes()),
        lambda: journal.wait(batch(2).changes()),
        lambda: journal.settle(batch(1).changes().id),
        lambda: journal.boot(20),
    ):
        step()
        states.append((journal.end, says(journal)))
    journal.close()
    whole = path.read_bytes()[: journal.end]
    for length in range(states[0][0], len(whole) + 1):
        path.write_bytes(whole[:length])
        expected = [state for size, state in states if size <= length][-1]
        size = max(size for size, _ in states if size <= length)
        found = open_(path)
        assert says(found) == expected
        assert (found.cut, found.end) == (len(whole[size:length].rstrip(b"\0")), size)
        found.boot(30)
        found.close()
        again = open_(path)
        assert again.epoch == expected[1] + 1  # type: ignore[operator]
        again.close()


def test_zeros_behind_the_last_record_are_kept_for_the_next(tmp_path: Path) -> None:
    fill(tmp_path / "journal").close()
    size = (tmp_path / "journal").stat().st_size
    journal = open_(tmp_path / "journal")
    assert (journal.cut, journal.epoch) == (0, 1)
    assert journal.end < size == (tmp_path / "journal").stat().st_size
    journal.boot(20)
    journal.close()
    again = open_(tmp_path / "journal")
    assert (again.cut, again.epoch) == (0, 2)
    again.close()


def test_damage_before_good_records_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    fill(path).close()
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        JournalDamaged, match=r"found damage before the record at \d+: restore it from a backup"
    ):
        open_(path)
    assert path.read_bytes() == data


class StateServer(msgspec.Struct, tag="state", array_like=True):
    """A record that journals held once."""

    package: str = "state"
    version: str = "ab12"
    drop: tuple[tuple[str, str], ...] = (("own-uid", "no root"),)


def test_a_record_that_means_nothing_any_more_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = fill(path)
    end, said = journal.end, says(journal)
    journal.close()
    with path.open("r+b") as file:
        file.seek(end)
        file.write(frame(StateServer()))  # type: ignore[arg-type]
    journal = open_(path)
    assert (says(journal), journal.cut) == (said, 0)
    journal.boot(30)
    journal.compact()
    journal.close()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"hello")
    with pytest.raises(JournalDamaged, match="expected it to begin with b'atoll journal 1"):
        open_(tmp_path / "journal")


def test_a_second_journal_is_not_made_over_the_first(tmp_path: Path) -> None:
    fill(tmp_path / "journal").close()
    with pytest.raises(FileExistsError, match="a node has its journal here"):
        create(tmp_path / "journal", "other", 8)


def test_compaction_says_the_same_in_fewer_records(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = fill(path)
    for number in range(50):
        journal.wait(batch(100 + number).changes())
        journal.settle(batch(100 + number).changes().id)
    before, size = says(journal), journal.end
    journal.compact()
    assert says(journal) == before
    assert (journal.records, journal.end < size / 5) == (3, True)
    journal.boot(30)
    journal.close()
    read = open_(path)
    assert says(read) == says(journal)
    read.close()


def test_a_compaction_that_did_not_finish_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written = fill(path)
    written.close()
    path.with_name("journal.new").write_bytes(b"atoll jour")
    read = open_(path)
    assert says(read) == says(written)
    read.compact()
    assert os.listdir(tmp_path) == ["journal"]
    read.close()


@pytest.mark.parametrize("fault", [errno.EMFILE, errno.EIO])
def test_what_is_written_after_a_compaction_that_failed_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """The folder cannot be opened, or cannot be synced when the file is in its place already."""
    open_any, sync_any = os.open, os.fsync

    def failing_open(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECTORY and fault == errno.EMFILE:
            raise OSError(fault, os.strerror(fault))
        return open_any(path, flags, *more)

    def failing_sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(fault, os.strerror(fault))
        sync_any(descriptor)

    path = tmp_path / "journal"
    journal = fill(path)
    monkeypatch.setattr(os, "open", failing_open)
    monkeypatch.setattr(os, "fsync", failing_sync)
    with pytest.raises(OSError, match=os.strerror(fault)):
        journal.compact()
    before = says(journal)
    if fault == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(fault)):
            journal.boot(30)  # a power cut could still take the file away that this would be in
        assert says(journal) == before
    monkeypatch.undo()
    journal.wait(batch(100).changes())
    journal.boot(30)
    read = open_(path)
    assert says(read) == says(journal) != before
    read.close()
    journal.close()


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("bwsrc"), st.integers(0, 3)), max_size=12))
def test_any_sequence_reads_back(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = create(path, "node", 7)
    for kind, number in steps:
        match kind:
            case "b":
                journal.boot(number)
            case "w":
                journal.wait(batch(number).changes())
            case "s":
                journal.settle(batch(number).changes().id)
            case "r":
                before = says(journal)
                journal.close()
                journal = open_(path)
                assert says(journal) == before
            case _:
                journal.compact()
    before = says(journal)
    journal.close()
    journal = open_(path)
    assert says(journal) == before
    journal.close()
