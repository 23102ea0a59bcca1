"""One granted buffer against holders that try what its seals forbid, by every way Linux has."""

import ctypes
import fcntl
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from atoll.ipc.buffer import BufferMode
from atoll.ipc.system.control import WithdrawBuffer
from atoll.microkernel import connections
from atoll.microkernel.buffers import F_SETLEASE, F_SETSIG, Buffer
from atoll.microkernel.connections import Connection
from atoll.microkernel.parties import Party
from atoll.native import ffi, lib, segments

SIZE = 3 * mmap.PAGESIZE


@pytest.fixture
def make() -> Iterator[Callable[..., Buffer]]:
    party = Party(1, "@1", "all")
    made: list[Buffer] = []

    def make(mode: BufferMode, source: Buffer | None = None) -> Buffer:
        buffer = Buffer(len(made) + 1, party, SIZE, mode, source=source)
        buffer.make()
        made.append(buffer)
        return buffer

    yield make
    for buffer in made:
        buffer.close()
    party.close()


def mapped(buffer: Buffer, mode: BufferMode) -> mmap.mmap:
    """As a holder maps it."""
    descriptor = buffer.open(mode)
    access = mmap.PROT_READ | (mmap.PROT_WRITE if mode == "writable" else 0)
    try:
        return mmap.mmap(descriptor, SIZE, mmap.MAP_SHARED, access)
    finally:
        os.close(descriptor)


def test_a_reader_finds_no_way_to_write(make: Callable[..., Buffer]) -> None:
    buffer = make("readonly")
    writer = mapped(buffer, "writable")
    buffer.close_to_writers()
    writer[:5] = b"atoll"
    descriptor = buffer.open("readonly")
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    reader = mmap.mmap(descriptor, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    with ffi.from_buffer(reader) as memory:
        address = ctypes.c_void_p(int(ffi.cast("uintptr_t", memory)))
        assert libc.mprotect(address, ctypes.c_size_t(SIZE), mmap.PROT_READ | mmap.PROT_WRITE) == -1
    for attempt in (
        lambda: mmap.mmap(again, SIZE),
        lambda: os.pwrite(again, b"mine", 0),
        lambda: os.ftruncate(again, 0),
        lambda: os.posix_fallocate(again, 0, 2 * SIZE),
        lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert lib.atoll_punch(again, 0, SIZE) != 0
    writer[:5] = b"later"
    assert reader[:5] == b"later"
    for held in (writer, reader):
        held.close()
    os.close(descriptor)
    os.close(again)


@pytest.mark.parametrize("sealed", [segments.F_SEAL_SEAL, segments.F_SEAL_FUTURE_WRITE])
def test_a_holder_that_seals_a_buffer_itself_keeps_nothing(make: Callable[..., Buffer], sealed: int) -> None:
    """Against seals: it gets no reader. Against future writing: the kernel has mapped it before."""
    buffer = make("readonly")
    descriptor = buffer.open("writable")
    writer = mapped(buffer, "writable")
    segments.seal(descriptor, sealed)
    if sealed == segments.F_SEAL_SEAL:
        with pytest.raises(PermissionError):
            buffer.close_to_writers()
    else:
        buffer.close_to_writers()
    with pytest.raises(OSError, match=r"busy|not permitted"):
        segments.seal(descriptor, segments.F_SEAL_WRITE)
    writer[:6] = b"secret"
    buffer.empty()
    assert writer[:6] == bytes(6)
    writer.close()
    os.close(descriptor)


def test_a_holder_that_takes_a_lease_holds_nobody_up(make: Callable[..., Buffer]) -> None:
    """Linux would have the kernel wait for its end when it opens the buffer again."""
    buffer = make("writable")
    descriptor = buffer.open("writable")
    fcntl.fcntl(descriptor, F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, F_SETLEASE, fcntl.F_WRLCK)
    with pytest.raises(BlockingIOError):
        buffer.open("readonly")
    assert buffer.mapped()
    os.close(descriptor)
    assert not buffer.mapped()


@pytest.mark.parametrize("mode", ["writable", "readonly"])
def test_a_copy_is_sealed_as_its_mode_says(make: Callable[..., Buffer], mode: BufferMode) -> None:
    source = make(mode)
    with mapped(source, "writable") as held:
        held[:5] = b"atoll"
    for copied in ("readonly", "immutable"):
        copy = make(copied, source)
        with pytest.raises(PermissionError):
            mapped(copy, "writable")
        with mapped(copy, "readonly") as held:
            assert held[:5] == b"atoll"
            if copied == "readonly":
                copy.empty()
                assert held[:5] == bytes(5)


def test_linux_says_whether_a_buffer_is_mapped_in_another_process(make: Callable[..., Buffer]) -> None:
    buffer = make("readonly")
    assert not buffer.mapped()
    held = mapped(buffer, "writable")
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    held.close()
    assert buffer.mapped(), "the child has the mapping"
    ours.close()
    os.waitpid(child, 0)
    assert not buffer.mapped()
    assert buffer.give_back()


async def test_one_that_stops_listening_is_ended_and_nobody_else_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "UNREAD_MOST", 4)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    party = Party(1, "@1", "all")
    party.connection = Connection(ours)
    async with trio.open_nursery() as nursery:

        async def hear() -> None:
            assert party.connection is not None
            assert await party.connection.receive() is None

        nursery.start_soon(hear)
        await trio.testing.wait_all_tasks_blocked()
        while not party.connection.closed:
            party.send(WithdrawBuffer(token=1))
        party.send(WithdrawBuffer(token=1))
    party.close()
    theirs.close()
