"""A program that shares nothing with the test but a Unix socket: over it come a channel's memory, its notice and its
doorbell. It calls, and sleeps on the doorbell alone.

    python -m tests.native.stranger DESCRIPTOR TIMES
"""

import mmap
import os
import select
import socket
import sys

import msgspec

from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.outside import Outside
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.proxy import bind
from atoll.ipc.system.control import OpenChannel, Port

from .suite import Target


class Given(msgspec.Struct):
    """What the descriptors are for."""

    opened: OpenChannel
    port: Port


def main(descriptor: int, times: int) -> None:
    with socket.socket(fileno=descriptor) as end:
        packet, (memory, notice, bell, kernel), _, _ = socket.recv_fds(end, 65536, 4)
        given = msgspec.msgpack.decode(packet, type=Given)
        host = Outside(kernel, lambda channel, check: sys.exit(f"channel {channel}: {check}"))
        mapped = mmap.mmap(notice, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        channel = ClientChannel(given.opened, memory, bell, mapped, host)
        host.add(channel)
        double = bind(Target, ChannelTransport(channel, given.port)).double.start
        for number in range(times):
            assert channel.arm()  # before the request: its reply has to ring
            future = double(number)
            select.select([bell], [], [])
            while channel.look() == 0:  # a ring for what was seen already
                if channel.arm():
                    select.select([bell], [], [])
            assert future.result() == number * 2
        end.send(b"rung for")
        os._exit(0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
