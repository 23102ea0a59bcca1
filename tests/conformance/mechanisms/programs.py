"""What runs beside the kernel of a test: `python -m tests.conformance.mechanisms.programs NAME` on the real host, where
descriptor 0 is the socket to the test; a process of its own in a world."""

import os
import socket
import sys

import trio

from atoll.microkernel.mechanisms import HostDoors

from .hosts import Inside


async def kernel(inside: Inside) -> None:
    """Hands out what tells others that it lives, and ends when it is told to."""
    own = inside.doors.own()
    socket.send_fds(inside.end, [b"own"], [own])
    os.close(own)
    await told(inside.end)


async def visitor(inside: Inside) -> None:
    """Connects to the address that it is told, says so, and ends when it is told to."""
    address = await told(inside.end)
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inside.bear(caller)
    caller.connect(address)
    inside.end.send(b"connected")
    await told(inside.end)
    caller.close()


async def told(end: socket.socket) -> bytes:
    """What the test says next."""
    await trio.lowlevel.wait_readable(end)
    return end.recv(4096)


MAINS = {main.__name__: main for main in (kernel, visitor)}


if __name__ == "__main__":
    trio.run(MAINS[sys.argv[1]], Inside(HostDoors(), socket.socket(fileno=0), lambda caller: None))
