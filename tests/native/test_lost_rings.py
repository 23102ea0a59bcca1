"""Rings that could be lost, one by one: whoever made an event died, lied, flooded, or left before it rang. (Raw cffi.)

Nothing here waits: a ring is in the doorbell's epoll, or it is lost.
"""

import array
import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import trio

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system import control
from atoll.ipc.system.control import Shape
from atoll.native import Kind, Op, ffi, lib
from tests.adversary.attack import LINE
from tests.kit.memory import Memory, Segment
from tests.kit.serving import serving

from .suite import Server

SHAPE = Shape(ring_bits=12, bulk_bits=12)
NUMBER, LANE = 7, 1
PARKED, CPU = 0, 1
"""Words of `struct side`."""


class Sleeper:
    """A client on its doorbell, as event loops are: one channel in an epoll that reports edges."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.c = lib.atoll_channel_open(
            memory.descriptor, memory.client_bell.fileno(), 0, SHAPE.lanes, SHAPE.ring_bits, SHAPE.bulk_bits,
            memory.epoch, memory.base, ffi.NULL,
        )  # fmt: skip
        assert self.c != ffi.NULL
        self._epoll = select.epoll()
        self._epoll.register(memory.client_bell, select.EPOLLIN | select.EPOLLET)

    def sleeps(self) -> None:
        """What an event loop does from the moment it is woken until it waits again."""
        lib.atoll_disarm(self.c)
        while lib.atoll_receive(self.c) >= 0:
            pass
        assert lib.atoll_arm(self.c)

    def rang(self) -> bool:
        return bool(self._epoll.poll(0))

    def close(self) -> None:
        self._epoll.close()
        lib.atoll_channel_close(self.c)


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    memory = Memory(NUMBER, SHAPE, 0)
    made = Sleeper(memory)
    made.sleeps()
    yield made
    made.close()
    memory.close()


def test_the_kernel_rings_in_place_of_a_server_that_died_before_it_rang(sleeper: Sleeper) -> None:
    """Killed between the exchange of the word and the ring; or it cleared the word to have its client sleep on."""
    memoryview(sleeper.memory.mapped).cast("I")[LINE // 4] = 0
    assert not sleeper.rang()
    sleeper.memory.wake_client()
    assert sleeper.rang()


def flood_with_bytes(bell: socket.socket) -> None:
    bell.send(b"!" * 65536, socket.MSG_DONTWAIT)


def flood_with_descriptors(bell: socket.socket) -> None:
    """Each packet with a descriptor ends a `recv`, however much room that has."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bell.fileno()]))
    bell.sendmsg([b"!"], [rights], socket.MSG_DONTWAIT)


@pytest.mark.parametrize("flood", [flood_with_bytes, flood_with_descriptors])
def test_a_flooded_doorbell_still_rings_for_the_kernel(
    sleeper: Sleeper, flood: Callable[[socket.socket], None]
) -> None:
    with contextlib.suppress(BlockingIOError, OSError):  # full, or too many descriptors under way
        while True:
            flood(sleeper.memory.server_bell)
    assert sleeper.rang()
    sleeper.sleeps()
    sleeper.memory.wake_client()
    assert sleeper.rang()


@contextlib.contextmanager
def receive_loop(*memories: Memory) -> Iterator[tuple[Any, Any]]:
    """A server's loop in this process, with these channels; and the last of them."""
    notice, status = Segment("notice", 65536), Segment("status", 4096, "writable")
    loop = lib.atoll_loop_new(notice.c, status.c, 1 << 20)
    channels = {}
    for memory in memories:
        channel = channels[memory.number] = lib.atoll_channel_open(
            memory.descriptor, memory.server_bell.fileno(), 1, SHAPE.lanes, SHAPE.ring_bits, SHAPE.bulk_bits,
            memory.epoch, memory.base, ffi.NULL,
        )  # fmt: skip
        assert lib.atoll_loop_add(loop, channel, memory.number, 0) == 0
    try:
        yield loop, channel
    finally:
        for number, each in channels.items():
            lib.atoll_loop_remove(loop, number)
            lib.atoll_channel_close(each)
        lib.atoll_loop_free(loop)
        notice.close()
        status.close()


def test_a_ring_that_was_put_off_is_made_up_for_when_the_channel_leaves_the_loop(sleeper: Sleeper) -> None:
    """At a swap: the next process knows nothing of a reply that this one wrote and has not rung for."""
    with receive_loop(sleeper.memory) as (loop, channel):
        assert lib.atoll_loop_reply(loop, NUMBER, 1, LANE, Kind.REPLY, b"1", 1) == 0
        assert not sleeper.rang()
        lib.atoll_loop_remove(loop, NUMBER)
        assert sleeper.rang()
        sleeper.sleeps()
        assert lib.atoll_loop_add(loop, channel, NUMBER, 0) == 0  # the swap was refused
        assert lib.atoll_loop_reply(loop, NUMBER, 2, LANE, Kind.REPLY, b"2", 1) == 0
        lib.atoll_loop_flush(loop)
        assert sleeper.rang()


def test_rings_that_were_put_off_are_counted_once_a_channel(sleeper: Sleeper) -> None:
    """A reader of a stream is rung for at once if it sleeps on another core, or says so; what is put off is a list with
    room for each channel once."""
    client = memoryview(sleeper.memory.mapped)[LINE : 2 * LINE].cast("I")
    with receive_loop(sleeper.memory) as (loop, _):
        for number in range(3 * 4096):
            client[PARKED], client[CPU] = 2, 4095
            assert lib.atoll_loop_reply(loop, NUMBER, 1, LANE, Kind.ITEM, b"1", 1) == 0
            assert client[PARKED] == 0, number
            sleeper.sleeps()
        lib.atoll_loop_flush(loop)
        lib.atoll_loop_until(loop, 1)
        assert lib.atoll_loop_next(loop, b"", 0) >> 56 == Op.EXTERNAL


def fill(sleeper: Sleeper) -> int:
    """Cancellations of calls that are over, until one finds no room and its sender sleeps; how many found some."""
    site = ffi.new("atoll_site *", {"kind": Kind.CANCEL, "lane": LANE})
    written = 0
    while lib.atoll_send(sleeper.c, site, 1, bytes(1000), 1000, 0, 0, ffi.NULL) >= 0:
        written += 1
    assert lib.atoll_arm(sleeper.c)
    return written


def take(loop: Any, records: int) -> None:
    while records:
        records -= (
            lib.atoll_loop_next(loop, b"", 0) >> 56 == Op.STREAM
        )  # in between it may be the event loop's turn


def test_room_that_was_made_is_told_when_the_channel_leaves_the_loop(sleeper: Sleeper) -> None:
    """At a swap: the next process finds empty rings, and knows of nobody who waits for room in one."""
    with receive_loop(sleeper.memory) as (loop, _):
        take(loop, fill(sleeper))
        assert not sleeper.rang(), "one ring a batch, and that is not over"
        lib.atoll_loop_remove(loop, NUMBER)
        assert sleeper.rang()


def test_room_that_was_made_is_told_when_another_channel_leaves_the_loop(sleeper: Sleeper) -> None:
    """The last one then takes its place: the batch in hand was over at whoever came next, and that one was looked at."""
    others = [Memory(number, SHAPE, 0) for number in (NUMBER + 1, NUMBER + 2)]
    with receive_loop(*others, sleeper.memory) as (loop, _):
        lib.atoll_loop_until(loop, 1)
        take(loop, fill(sleeper))
        lib.atoll_loop_remove(loop, others[1].number)
        assert lib.atoll_loop_next(loop, b"", 0) >> 56 == Op.EXTERNAL
        assert sleeper.rang()
    for memory in others:
        memory.close()


# a doorbell that was shut ---------------------------------------------------------------------------------------------


def in_asyncio(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


@pytest.mark.parametrize("run", [in_asyncio, trio.run])
def test_a_server_that_shuts_its_doorbell_has_misbehaved(run: Callable[..., None]) -> None:
    """Whoever shut it can keep the kernel from ringing: an event loop would never learn that the server was closed."""
    with serving(Server) as served:
        served.drain()
        memory = served.channels[0]
        proxy = served.proxies[0]

        async def caller() -> None:
            future = proxy.double.start(1)
            memory.server_bell.shutdown(socket.SHUT_WR)
            with pytest.raises(PeerMisbehaved, match="doorbell"):
                await future

        run(caller)
        assert served.accused == [(memory.number, "doorbell")]


@pytest.mark.parametrize("before", [b"", b"!"], ids=["alone", "behind a ring"])
def test_a_server_that_calls_one_with_a_shut_doorbell_says_so(before: bytes) -> None:
    with serving(Server) as served:
        memory = Memory(900, Shape(), 0)
        lib.atoll_notice_channel(served.server_notice.c, 0, 1, 1, memory.base, ffi.NULL)
        opened = control.OpenChannel(
            channel=memory.number, role="client", peer="hostile", shape=memory.shape, epoch=1,
            base=memory.base, notice=0,
        )  # fmt: skip
        served._send(opened, memory.descriptor, memory.client_bell.fileno())
        served.observe()
        memory.server_bell.send(before)
        memory.server_bell.shutdown(socket.SHUT_WR)
        found = served.until_misbehaved()
        assert (found.channel, found.check) == (900, "doorbell")
        beats = served.heartbeat()
        served.observe()
        assert served.heartbeat() - beats < 100, "it is looked at once"
        assert served.proxies[0].double.now(2) == 4
        memory.close()


def test_memory_that_can_be_made_shorter_is_not_mapped() -> None:
    """A peer could end us with SIGBUS."""
    memory = Memory(NUMBER, SHAPE, 0)
    loose = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(loose, len(memory.mapped))
    bell = memory.client_bell.fileno()
    assert lib.atoll_channel_open(loose, bell, 0, SHAPE.lanes, 12, 12, 1, memory.base, ffi.NULL) == ffi.NULL
    assert ffi.errno == 1  # EPERM
    os.close(loose)
    memory.close()
