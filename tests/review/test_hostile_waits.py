"""What a hostile peer does to whoever waits for it: the wait ends, and others are served meanwhile. (Raw cffi.)"""

import errno
import mmap
import struct
import threading

import pytest

from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import Overloaded
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves
from atoll.ipc.system import control
from atoll.native import Kind, Result, ffi, lib
from tests.kit.memory import Memory
from tests.kit.serving import serving

SHAPE = control.Shape(lanes=1, ring_bits=12, bulk_bits=12)
RINGS_AT = 4096


def test_a_wait_that_is_woken_for_nothing_ends_its_slice() -> None:
    memory = Memory(1, SHAPE, 0)
    channel = lib.atoll_channel_open(
        memory.descriptor, memory.client_bell.fileno(), 0, 1, 12, 12, 1, memory.base, ffi.NULL
    )
    results: list[int] = []
    waiting = threading.Thread(target=lambda: results.append(lib.atoll_wait(channel, 1, 0)))
    waiting.start()
    while waiting.is_alive():
        memory.wake_client()
    waiting.join()
    assert results == [Result.AGAIN]
    lib.atoll_channel_close(channel)
    memory.close()


@pytest.mark.parametrize("which", ["consumed", "produced"])
def test_positions_that_no_record_begins_at_are_refused(which: str) -> None:
    memory = Memory(1, SHAPE, 0)
    consumed = ffi.new("uint64_t[3]", [memory.base + (8 if which == "consumed" else 0)] * 3)
    produced = ffi.new("uint64_t[3]", [memory.base + (8 if which == "produced" else 0)] * 3)
    channel = lib.atoll_channel_resume(
        memory.descriptor, memory.server_bell.fileno(), 1, 12, 12, 1, consumed, produced
    )
    assert channel == ffi.NULL and ffi.errno == errno.EINVAL
    memory.close()


class Ledger(Interface):
    @call("use")
    def note(self, text: str) -> None: ...
    @call("use")
    def settle(self, text: str) -> str: ...


class LedgerServer(Serves[Ledger]):
    """Settles when its rings are drained, as the store does."""

    def __init__(self) -> None:
        self._open: list[tuple[str, Deferred[str]]] = []

    @Ledger.note.serve
    def note(self, text: str) -> None:
        for _ in range(2000):  # slow enough that one client can keep its ring full
            pass

    @Ledger.settle.serve
    def settle(self, text: str) -> Deferred[str]:
        self._open.append((text, Deferred()))
        return self._open[-1][1]

    def idle(self) -> float | None:
        settled, self._open = self._open, []
        for text, done in settled:
            done.complete(text)
        return None


def test_a_ring_that_is_never_drained_keeps_nobody_from_being_answered() -> None:
    with serving(LedgerServer, clients=2) as served:
        flooding, other = served.proxies
        stop, full = threading.Event(), threading.Event()

        def flood() -> None:
            while not stop.is_set():
                try:
                    flooding.note.cast("x" * 100)
                except Overloaded:
                    full.set()

        thread = threading.Thread(target=flood)
        thread.start()
        full.wait()
        try:
            assert other.settle.now("mine") == "mine"
        finally:
            stop.set()
            thread.join()


def test_garbage_from_a_server_that_a_server_calls_stops_nothing_there() -> None:
    with serving(LedgerServer) as served:
        assert served.proxies[0].settle.now("before") == "before"
        memory = Memory(900, SHAPE, 0)
        lib.atoll_notice_channel(served.server_notice.c, 0, 1, 1, memory.base, ffi.NULL)
        opened = control.OpenChannel(
            channel=memory.number, role="client", peer="hostile", shape=SHAPE, epoch=1, base=memory.base,
            notice=0,
        )  # fmt: skip
        served._send(opened, memory.descriptor, memory.client_bell.fileno())
        served.observe()
        ring, size = RINGS_AT + (1 << 12), 1 << 12
        header = struct.pack(
            "<QIIQIIIHBBQQQ", memory.base + 1, 0, 0, 1, 0, 0, 1, 0xFFFF, int(Kind.REPLY), 0, 0, 0, 0
        )
        with mmap.mmap(memory.descriptor, 0) as shared:
            at = ring + (memory.base & (size - 1))
            shared[at + 8 : at + 64] = header[8:]
            shared[at : at + 8] = header[:8]
        memory.wake_client()
        found = served.until_misbehaved()
        served.observe()
        assert (found.channel, found.check) == (900, "flags")
        assert served.proxies[0].settle.now("after") == "after"
        memory.close()
