"""The kernel's end of a control socket whose peer does not read, as a frozen server does not."""

import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system import control
from atoll.microkernel.connections import Connection


@contextmanager
def unread() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection in which there is no room any more, and the end that could make some."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)
    try:
        with theirs:
            filling = control.Unwelcome(sentence="x" * 1000)
            while not connection.unsent:
                connection.send(filling)
            yield connection, theirs
    finally:
        connection.close()


def opening(number: int) -> control.OpenChannel:
    return control.OpenChannel(
        channel=number, role="server", peer="@1", shape=control.Shape(), epoch=1, base=0, notice=0
    )


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_channels_that_come_and_go_leave_nothing_behind() -> None:
    """Whoever attaches and goes while a server is frozen must not use the kernel's descriptors up."""
    gc.collect()  # what earlier tests of this process left is closed now, and not between two counts
    with unread() as (connection, theirs):
        before, kept = descriptors(), connection.unsent
        for number in range(1, 1000):
            connection.send(opening(number), (0, 1))
            connection.send(control.CloseChannel(channel=number, reason="it went"))
        assert (descriptors(), connection.unsent) == (before, kept)
        connection.send(opening(1000), (0, 1))
        connection.send(opening(1001), (0, 1))
        connection.send(control.CloseChannel(channel=1000, reason="it went"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            theirs.setblocking(False)
            heard: list[control.ToProcess] = []
            while not heard or not isinstance(heard[-1], control.OpenChannel):
                await trio.lowlevel.wait_readable(theirs)
                data, got, _, _ = socket.recv_fds(theirs, control.PACKET_LIMIT, 4)
                heard.append(control.to_process.decode(data))
                for each in got:
                    os.close(each)
            nursery.cancel_scope.cancel()
        assert [m.channel for m in heard if isinstance(m, control.OpenChannel)] == [1001]
        assert not any(isinstance(message, control.CloseChannel) for message in heard)
        assert descriptors() == before


async def test_of_a_channel_that_came_and_went_nothing_is_heard() -> None:
    """A program that asks for nothing reads nothing, and would look for the reader's channel; a buffer that is told of stays
    mapped until the channel is closed."""
    before = descriptors()
    port = control.Port(channel=7, slot=1, generation=1, interface="State", rights=("read",))
    with unread() as (connection, _):
        connection.send(control.ReadAt(channel=1, slot=1, generation=1, port=None))
        connection.send(opening(7), (0, 1))
        connection.send(control.ReadAt(channel=1, slot=1, generation=1, port=port))
        connection.send(control.DeliverBuffer(token=1, size=1, mode="readonly", channel=7), (0,))
        connection.send(control.DeliverBuffer(token=1, size=1, mode="readonly", channel=8), (0,))
        connection.send(control.Deliver(token=2, port=port, channel=7))
        connection.send(control.WithdrawBuffer(token=1, channel=7))
        connection.send(control.CloseChannel(channel=7, reason="it went"))
        connection.send(control.WithdrawBuffer(token=1, channel=8))
        kept = [control.to_process.decode(each.data) for each in connection._unsent]
        assert [type(message).__name__ for message in kept[-3:]] == [
            "ReadAt",
            "DeliverBuffer",
            "WithdrawBuffer",
        ]
        assert not any(getattr(message, "channel", 0) == 7 for message in kept)
        assert connection._copies == 1
    assert descriptors() == before


async def test_who_never_reads_is_given_up() -> None:
    """By what it makes the kernel keep: packets, or descriptors of which this process has no more."""
    with unread() as (connection, _), pytest.raises(PeerMisbehaved, match="65536 packets are unread"):
        pile_up(connection, control.Ping(number=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with unread() as (connection, _):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 20, hard))
        try:
            with pytest.raises(PeerMisbehaved, match=r"unread: .*Too many open files"):
                pile_up(connection, opening(1), (0, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pile_up(connection: Connection, message: control.Message, riders: tuple[int, ...] = ()) -> None:
    while True:
        connection.send(message, riders)
