"""multiprocessing.Pipe (a Unix socket pair) with msgspec on both sides."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from .. import children
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    ours, theirs = Pipe()
    number = theirs.fileno()
    with ours, theirs, children.served("peers.pipe", number, core=placement.server, descriptors=[number]):
        send, receive = ours.send_bytes, ours.recv_bytes

        def block(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                send(encode((NUMBER, TEXT)))
                decode_reply(receive())
            return time.perf_counter() - start

        yield block


def main(arguments: list[str]) -> None:
    connection: Connection[bytes, bytes] = Connection(int(arguments[0]))
    children.ready()
    send, receive = connection.send_bytes, connection.recv_bytes
    with contextlib.suppress(EOFError):
        while True:
            number, text = decode_request(receive())
            send(encode(handle(number, text)))
