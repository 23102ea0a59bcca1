"""What is read of a recorded process it wrote of itself, so it may be anything; and what it took over may be large."""

import mmap
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc import Interface, Serves, call
from atoll.ipc.interface import rights as rights_of
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.runtime.recording import Recorder
from atoll.ipc.serve import bind
from atoll.ipc.system import control
from atoll.ipc.system.calls import CHANCE, LARGEST, LATEST, MESSAGE, RECORD, WHOLE, ChunkRow, OpeningRow, Tape
from atoll.native import Op, ffi, lib
from tests.adversary.attack import Attacker, Record
from tests.kit.memory import Memory

CALL = 1
SIZE = 2 << 20


def row(tape: bytes, position: int = 0, wall: int = 0) -> ChunkRow:
    return ChunkRow(boot=1, process=2, position=position, wall=wall, time=0, dropped=0, tape=tape)


def record(size: int, time: int = 5) -> bytes:
    """A call without arguments; `size` is what it says of its size."""
    return RECORD.pack(size, CALL, 0, 0, 7, 0, 9, time) + MESSAGE.pack(*[0] * 16)


def test_a_record_that_claims_to_be_huge_is_not_gathered() -> None:
    tape = Tape()
    assert list(tape.calls(row(record((1 << 32) - 8)))) == []
    assert tape._rest == b""
    whole = record(RECORD.size + MESSAGE.size)
    assert list(tape.calls(row(whole, position=len(whole)))) == []
    assert len(tape.unanswered()) == 1, "the next row is read"


@pytest.mark.parametrize("wall", [0, (1 << 64) - 1, -(1 << 63)])
def test_a_time_beyond_all_clocks_is_a_time(wall: int) -> None:
    tape = Tape()
    assert list(tape.calls(row(record(RECORD.size + MESSAGE.size, (1 << 64) - 1), wall=wall))) == []
    (found,) = tape.unanswered()
    assert 0 <= found.time <= LATEST


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_whatever_a_tape_has_nothing_is_raised_and_little_kept(pieces: list[bytes]) -> None:
    tape, position = Tape(), 0
    for piece in pieces:
        list(tape.calls(row(piece, position)))
        position += len(piece)
        assert len(tape._rest) <= LARGEST


class Quiet(Interface):
    @call("read")
    def get(self) -> int: ...


class Server(Serves[Quiet]):
    @Quiet.get.serve
    def get(self) -> int:
        return 1


class Deaf:
    def refused(self, channel: int, slot: int, method: int, why: str) -> None: ...
    def misbehaved(self, channel: int, check: str) -> None: ...


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[OpeningRow] = []

    async def append(self, writes: list[Any], note: str) -> None:
        self.rows += [msgspec.msgpack.decode(write.value, type=OpeningRow) for write in writes]


@pytest.mark.parametrize(
    ("handed_over", "kept", "left_out"),
    [(None, None, 0), (b"x" * WHOLE, b"x" * WHOLE, 0), (b"x" * (WHOLE + 1), None, WHOLE + 1)],
    ids=["nothing", "as much as is kept", "more"],
)
async def test_a_large_state_that_was_taken_over_is_left_out_and_said(
    handed_over: bytes | None, kept: bytes | None, left_out: int
) -> None:
    start = control.Start(
        server="quiet",
        package="quiet",
        folder="",
        version="",
        boot=1,
        process=2,
        needs={},
        rights={},
        kernel=None,
    )
    told = control.Recording(size=SIZE, payloads=True, every=1, full=False)
    memory, store = os.memfd_create("tape"), Kept()
    os.ftruncate(memory, lib.atoll_tape_memory(SIZE))
    state: Any = store
    await Recorder(told, memory, start, state).open(bind(Server, {}), [], {}, handed_over)
    os.close(memory)
    (opened,) = store.rows
    assert (opened.took_over, opened.left_out) == (kept, left_out)


def test_a_full_tape_takes_no_call_after_a_swap_that_was_refused_either() -> None:
    notice, status, table = (mmap.mmap(-1, size) for size in (65536, 4096, 65536))
    loop = ServeLoop(bind(Server, {}), notice, status, {"Quiet": rights_of(Quiet)}, Deaf())
    loop.add_segment(0, table)
    memory = Memory(7, control.Shape(), 0)
    opened = control.OpenChannel(
        channel=7, role="server", peer="client", shape=memory.shape, epoch=1, base=memory.base, notice=0
    )
    loop.add(opened, memory.descriptor, memory.server_bell.fileno())
    lib.atoll_entry_write(ffi.from_buffer(table), 5, 7, 1, 0xFF, 1, 0, 0, 0, 9)
    kept = mmap.mmap(-1, lib.atoll_tape_memory(SIZE))
    tape = lib.atoll_tape_new(ffi.from_buffer(kept), SIZE, True, 1, True)
    lib.atoll_loop_tape(loop.c, tape)

    def taken() -> int:
        lib.atoll_loop_until(loop.c, 1)
        return int(lib.atoll_loop_next(loop.c, b"", 0))

    while lib.atoll_tape_note(tape, 0, 0, CHANCE, bytes(1000), 1000) == 0:
        pass
    full = taken()
    assert (full >> 56, full >> 32 & 0xFFFFFF) == (Op.TAPE, 2)
    loop.room(False)
    method = loop.endpoint.table[0].spec.number
    Attacker(memory, server=False).write(Record(0, method=method, slot=5, length=1), b"\x90")
    loop.drain(True)
    loop.drain(False)
    assert [taken() >> 56 for _ in range(4)] == [Op.EXTERNAL] * 4
    lib.atoll_tape_keep(tape, lib.atoll_tape_written(tape))
    loop.room(True)
    assert taken() == 1, "the call, of one byte"
    assert lib.atoll_tape_dropped(tape) == 1, "the note that found the tape full"
    memory.close()
