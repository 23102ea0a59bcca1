"""What a server may write to its clients, and what it leaves unread: it costs them their channel at most. (Raw cffi.)"""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from atoll.ipc.client import reading
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.errors import DeadlineExceeded, PeerDied, PeerMisbehaved
from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves
from atoll.ipc.streams import WINDOW
from atoll.ipc.system import control
from atoll.native import Kind, ffi, lib
from tests.adversary.attack import BULK, Attacker, Record
from tests.kit.memory import Memory
from tests.kit.played import PLAYED, client_of_played, played, proxy_of_played
from tests.kit.serving import Serving, serving
from tests.native.suite import Server, Target

FUTEX, FUTEX_REQUEUE, LINE = 202, 3, 64
encode = msgspec.msgpack.encode


def write(memory: Memory, *records: tuple[Kind, bytes]) -> None:
    """As an answer to the client's first request."""
    attacker = Attacker(memory, server=True)
    for kind, payload in records:
        flags = BULK if len(payload) > 1000 else 0
        attacker.write(Record(0, kind=kind, length=len(payload), flags=flags), payload, wake=False)
    attacker.wake()


def unserved(served: Serving) -> tuple[Memory, ClientChannel, Target]:
    """A channel of this process that the test serves."""
    memory = served.add_channel(served=False)
    target = served.bind(memory, Target, served.grant(memory, Target))
    return memory, served.client(memory), target


# what it writes -------------------------------------------------------------------------------------------------------


def _stream(target: Target) -> Callable[[], Any]:
    return target.numbers.now(5).__next__


def _opened_upload(target: Target) -> Any:
    return target.__dict__["_transport"].open(Target.total.spec, encode([]), target.__dict__["_options"])


def _upload(target: Target) -> Callable[[], Any]:
    return _opened_upload(target).receive_now  # type: ignore[no-any-return]


FULL = (Kind.ITEM, encode([encode(0)] * WINDOW))


@pytest.mark.parametrize(
    ("opened", "records", "check"),
    [
        (_stream, [FULL, (Kind.REPLY, encode(1))], "kind of reply"),
        (_upload, [FULL, (Kind.REPLY, encode(1))], "items without credit"),
        (_stream, [FULL, (Kind.ITEM, encode([]))], "items without credit"),
    ],
)
def test_what_cannot_follow_a_window_of_items_ends_the_channel(
    opened: Callable[[Target], Callable[[], Any]], records: list[tuple[Kind, bytes]], check: str
) -> None:
    with serving(Server, clients=0) as served:
        memory, channel, target = unserved(served)
        read = opened(target)
        write(memory, *records)
        channel.drain()  # and whichever thread it is that receives hears nothing of it
        assert served.accused == [(memory.number, check)]
        assert isinstance(channel.failed, PeerMisbehaved) and not channel.pending
        with pytest.raises(PeerMisbehaved):
            list(iter(read, None))


def test_a_record_of_no_items_is_not_kept() -> None:
    with serving(Server, clients=0) as served:
        memory, channel, target = unserved(served)
        numbers = target.numbers.now(5)
        write(memory, *[(Kind.ITEM, encode([]))] * 100)
        channel.drain()
        assert served.accused == [(memory.number, "items without credit")]
        with pytest.raises(PeerMisbehaved):
            next(numbers)


def _send(upload: Any, items: int) -> None:
    for _ in range(items):
        upload.send_now(encode(1))


def test_an_index_that_cannot_be_is_found_by_an_upload() -> None:
    """Its items were dropped, and whoever sent them waited for credit for ever."""
    with serving(Server, clients=0) as served:
        memory, channel, target = unserved(served)
        upload = _opened_upload(target)
        Attacker(memory, server=True).rewind(1, memory.base - LINE)
        with pytest.raises(PeerMisbehaved):
            _send(upload, WINDOW)
        assert served.accused == [(memory.number, "consumed index")]
        assert isinstance(channel.failed, PeerMisbehaved) and not channel.pending


def test_an_index_that_cannot_be_is_found_by_whoever_waits_for_room() -> None:
    """What was owed was tried again each second, and why it did not leave went unheard."""
    with serving(Server, clients=0) as served:
        memory, channel, target = unserved(served)
        upload = _opened_upload(target)
        while not channel.outbox.owed:
            upload.send_now(encode(1))
        Attacker(memory, server=True).rewind(1, memory.base - LINE)
        with pytest.raises(PeerMisbehaved):
            upload.receive_now()
        assert served.accused == [(memory.number, "consumed index")]


@pytest.mark.parametrize("tells", [reading._of_item, reading._of_revised])
def test_a_reply_that_nests_without_end_tells_no_revision(tells: reading.Tells) -> None:
    """Whoever receives looks at it, and goes on; its caller is told what it is."""
    reads = reading.Reads()
    for head in (b"\x92\x01", b"\x93\xa1k"):
        reads.saw(tells, head + b"\x91" * 100_000 + b"\xc0\x01")
    assert reads.seen == 0


# to a client that is a server -----------------------------------------------------------------------------------------


class Reader(Interface):
    @call("use")
    def read(self) -> int: ...
    @call("use")
    def ask(self) -> int: ...
    @call("use")
    def parked(self) -> bool:
        """Whether a thread sleeps over what it asked."""

    @call("use")
    def well(self) -> bool: ...


class ReaderServer(Serves[Reader]):
    """Reads from the server that the test plays."""

    @Reader.read.serve
    async def read(self) -> int:
        async for _ in proxy_of_played(Target).numbers(5):
            await trio.sleep_forever()
        raise AssertionError

    @Reader.ask.serve
    async def ask(self) -> int:
        target = proxy_of_played(Target)
        return await trio.to_thread.run_sync(lambda: target.double.now(1))

    @Reader.parked.serve
    def parked(self) -> bool:
        return bool(client_of_played()._counters.parks)

    @Reader.well.serve
    def well(self) -> bool:
        return True


def test_a_server_outlives_what_a_server_that_it_calls_writes() -> None:
    with serving(ReaderServer) as served, played(served) as memory:
        reading = served.proxies[0].read.start()
        while not Attacker(memory, server=True).hears():
            served.observe()
        write(memory, FULL, (Kind.REPLY, encode(1)))
        assert served.until_misbehaved().channel == PLAYED
        assert served.proxies[0].well.now()
        reading.cancel()


def _requeue(memory: Memory) -> bool:
    """Have whoever sleeps on the client's word sleep on another one. Whether somebody did."""
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory.mapped))
    word, other = ctypes.c_void_p(base + LINE), ctypes.c_void_p(base + LINE + 36)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(FUTEX, word, FUTEX_REQUEUE, 0, ctypes.c_void_p(1), other, 0) > 0)


@pytest.mark.parametrize("moved", [False, True])
def test_a_channel_is_closed_while_a_thread_of_the_server_waits(moved: bool) -> None:
    """It waits where the kernel's ring finds it, or where the hostile server has moved it."""
    with serving(ReaderServer) as served, played(served) as memory:
        asking = served.proxies[0].ask.start()
        while not served.proxies[0].parked.now():
            pass
        while moved and not _requeue(memory):
            pass
        lib.atoll_notice_channel(served.server_notice.c, 0, 1, 3, memory.base, ffi.NULL)
        memory.wake_client()
        served._send(control.CloseChannel(channel=PLAYED, reason="closed by the test"))
        with pytest.raises(PeerDied, match=r"Target\.double .* outcome unknown"):
            asking.result()
        served.observe()
        assert served.proxies[0].well.now()


# what it leaves unread ------------------------------------------------------------------------------------------------

LARGE = 900_000


async def give_up(target: Target, calls: int) -> None:
    """So many calls at once, none of which is answered in time."""

    async def ask() -> None:
        with pytest.raises(DeadlineExceeded):
            await target.with_(deadline=0.01).mirror(b"x" * LARGE)

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(ask)


def test_calls_that_were_given_up_are_not_owed() -> None:
    with serving(Server, clients=0) as served:
        _, channel, target = unserved(served)
        for _ in range(20):
            trio.run(give_up, target, 4)
        owed = channel.outbox.owed
        assert len(owed) <= 4, "the cancellations of those that found room"
        assert not any(record.payload or record.pending.payload for record in owed)


def test_a_server_that_reads_again_hears_of_no_call_that_was_given_up_before() -> None:
    with serving(Server) as served:
        channel = served.client(served.channels[0])
        served.observe()
        target = served.proxies[0]
        os.kill(served.pid, signal.SIGSTOP)
        trio.run(give_up, target, 8)
        sent = channel.statistics().bytes_sent
        os.kill(served.pid, signal.SIGCONT)
        assert target.double.now(2) == 4
        assert channel.statistics().bytes_sent - sent < LARGE
        assert not channel.outbox.owed
        assert not served.misbehaved
