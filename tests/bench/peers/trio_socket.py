"""A trio program on each end of a Unix socket pair, msgspec on both sides; messages are of one known size."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from .. import children
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement

SIZE = 64


async def _receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(SIZE)
    while data and len(data) < SIZE:
        more = await stream.receive_some(SIZE - len(data))
        if not more:
            raise EOFError("the peer closed in the middle of a message")
        data += more
    return bytes(data)


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        children.served(
            "peers.trio_socket", theirs.fileno(), core=placement.server, descriptors=[theirs.fileno()]
        ),
    ):

        async def calls(n: int) -> float:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours.dup()))
            async with stream:
                start = time.perf_counter()
                for _ in range(n):
                    await stream.send_all(encode((NUMBER, TEXT)))
                    decode_reply(await _receive(stream))
                return time.perf_counter() - start

        yield lambda n: trio.run(calls, n)


async def _serve(descriptor: int) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor)))
    children.ready()
    while data := await _receive(stream):
        number, text = decode_request(data)
        await stream.send_all(encode(handle(number, text)))


def main(arguments: list[str]) -> None:
    trio.run(_serve, int(arguments[0]))
