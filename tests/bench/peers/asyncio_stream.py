"""asyncio streams over a Unix socket, msgspec on both sides."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .. import children
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement

SIZE = 64


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        children.served(
            "peers.asyncio_stream", theirs.fileno(), core=placement.server, descriptors=[theirs.fileno()]
        ),
        asyncio.Runner() as runner,
    ):
        reader, writer = runner.run(asyncio.open_unix_connection(sock=ours))

        async def calls(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                writer.write(encode((NUMBER, TEXT)))
                decode_reply(await reader.readexactly(SIZE))
            return time.perf_counter() - start

        async def finish() -> None:
            writer.close()
            await writer.wait_closed()

        yield lambda n: runner.run(calls(n))
        runner.run(finish())


async def _serve(descriptor: int) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
    children.ready()
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            number, text = decode_request(await reader.readexactly(SIZE))
            writer.write(encode(handle(number, text)))


def main(arguments: list[str]) -> None:
    asyncio.run(_serve(int(arguments[0])))
