"""The tape: what is written is read again, over the end of its memory, and what finds no room is counted. (Raw cffi.)"""

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.system.calls import CHANCE, ChunkRow, Recorded, Tape, read
from atoll.native import ffi, lib

SIZE = 2 << 20


class Written:
    """A tape and its memory."""

    def __init__(self, *, payloads: bool = True, every: int = 1, full: bool = False) -> None:
        self.memory = mmap.mmap(-1, lib.atoll_tape_memory(SIZE))
        self.c = lib.atoll_tape_new(ffi.from_buffer(self.memory), SIZE, payloads, every, full)
        assert self.c != ffi.NULL

    def note(self, request: int, payload: bytes) -> bool:
        """Whether there was room for it."""
        return lib.atoll_tape_note(self.c, 7, request, CHANCE, payload, len(payload)) == 0

    def row(self, upto: int) -> ChunkRow:
        """What lies between what was put away and a position, which is put away."""
        begin = lib.atoll_tape_kept(self.c)
        at, length = mmap.PAGESIZE + begin % SIZE, upto - begin
        first = self.memory[at : min(at + length, mmap.PAGESIZE + SIZE)]
        data = first + self.memory[mmap.PAGESIZE : mmap.PAGESIZE + length - len(first)]
        lib.atoll_tape_keep(self.c, upto)
        return ChunkRow(boot=1, process=2, position=begin, wall=0, time=0, dropped=0, tape=data)

    def close(self) -> None:
        lib.atoll_tape_free(self.c)


def noted(row: ChunkRow) -> list[bytes]:
    """The payloads of a row's notes."""
    found: list[bytes] = []

    class Notes(Tape):
        def _noted(self, what: int, payload: bytes, key: tuple[int, int]) -> None:
            assert (what, key[0]) == (CHANCE, 7)
            found.append(payload)

    assert list(Notes().calls(row)) == []
    return found


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 90_000), min_size=1, max_size=60), st.integers(1, 400_000))
def test_what_was_written_is_read_in_pieces_of_any_size(lengths: list[int], most: int) -> None:
    tape = Written()
    try:
        kept: list[bytes] = []
        written = [number.to_bytes(4, "big") * (length // 4) for number, length in enumerate(lengths)]
        for number, payload in enumerate(written):
            assert tape.note(number, payload)
            if number % 5 == 4:
                while lib.atoll_tape_kept(tape.c) < lib.atoll_tape_written(tape.c):
                    kept += noted(tape.row(lib.atoll_tape_cut(tape.c, most)))
        while lib.atoll_tape_kept(tape.c) < lib.atoll_tape_written(tape.c):
            kept += noted(tape.row(lib.atoll_tape_cut(tape.c, most)))
        assert kept == written
        assert lib.atoll_tape_dropped(tape.c) == 0
    finally:
        tape.close()


def test_what_finds_no_room_is_dropped_whole_and_counted() -> None:
    tape = Written()
    taken = sum(tape.note(number, bytes(100_000)) for number in range(50))
    assert 0 < taken < 50
    assert lib.atoll_tape_dropped(tape.c) == 50 - taken
    assert len(noted(tape.row(lib.atoll_tape_written(tape.c)))) == taken
    assert tape.note(0, bytes(100_000))
    tape.close()


def test_of_what_is_too_long_there_is_the_length() -> None:
    tape = Written()
    assert tape.note(1, bytes(300 << 10))
    row = tape.row(lib.atoll_tape_written(tape.c))
    assert len(row.tape) == 32
    assert noted(row) == []
    tape.close()


@pytest.mark.parametrize("size", [0, 1 << 16, (2 << 20) + 4096])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    assert lib.atoll_tape_new(ffi.NULL, size, 1, 1, 0) == ffi.NULL


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=400), st.integers(0, 500)), max_size=8))
def test_whatever_a_process_wrote_is_read_without_an_error(pieces: list[tuple[bytes, int]]) -> None:
    """Of its own tape a server may make anything; also something that begins as a record does."""
    rows, position = [], 0
    for data, gap in pieces:
        head = (len(data) & ~7).to_bytes(4, "little") + data[:1]
        tape = head + data
        position += gap
        rows.append(ChunkRow(boot=1, process=2, position=position, wall=0, time=0, dropped=0, tape=tape))
        position += len(tape)
    found: list[Recorded] = list(read(rows))
    assert all(call.boot == 1 for call in found)
