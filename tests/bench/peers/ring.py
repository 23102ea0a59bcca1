"""The floor of a call: the bare ring of `bare.c` with msgspec on both sides.

One cffi call a round trip on either side (send and receive; reply and take the next), the GIL given up by
each, the receive buffer cut into memoryviews beforehand. `SPIN` is longer than any round trip, so that
awake peers stay awake; a `spin` of 0 parks at once.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import children, native
from ..frame import Block
from ..payload import NUMBER, TEXT, decode_reply, decode_request, encode, handle
from ..placement import Placement

SPIN = 100_000
"""Turns of the wait loop before parking: some milliseconds."""


class Side:
    """One end of the ring as Python drives it."""

    def __init__(self, core: Any, descriptor: int, role: int, spin: int) -> None:
        self.lib = core.lib
        self.side = core.lib.bare_open(descriptor, role, spin)
        if self.side == core.ffi.NULL:
            raise MemoryError("the ring's memory could not be mapped")
        buffer = memoryview(core.ffi.buffer(core.lib.bare_buffer(self.side), core.lib.bare_buffer_bytes()))
        self.views = [buffer[:length] for length in range(len(buffer) + 1)]


def _spin(placement: Placement) -> int:
    return SPIN if placement.client is not None and placement.client != placement.server else 0


@contextmanager
def pair(mode: str, placement: Placement) -> Iterator[tuple[Any, Side]]:
    """A client's side whose server runs `mode` ("python" or "echo") in a process of its own."""
    core = native.load()
    descriptor = os.memfd_create("bare-ring")
    os.ftruncate(descriptor, core.lib.bare_bytes())
    try:
        spin = _spin(placement)
        with children.served(
            "peers.ring", mode, descriptor, spin, core=placement.server, descriptors=[descriptor]
        ):
            client = Side(core, descriptor, 0, spin)
            yield core, client
            core.lib.bare_say_end(client.side)
    finally:
        os.close(descriptor)


@contextmanager
def typed(placement: Placement) -> Iterator[Block]:
    """Python and msgspec on both sides."""
    with pair("python", placement) as (core, client):
        call, side, views = core.lib.bare_call, client.side, client.views

        def block(n: int) -> float:
            start = time.perf_counter()
            for _ in range(n):
                data = encode((NUMBER, TEXT))
                decode_reply(views[call(side, data, len(data))])
            return time.perf_counter() - start

        yield block


@contextmanager
def plain(placement: Placement) -> Iterator[Block]:
    """C on both sides, 64 bytes each way."""
    with pair("echo", placement) as (core, client):
        yield lambda n: float(core.lib.bare_ping(client.side, n, 64))


def main(arguments: list[str]) -> None:
    mode, descriptor, spin = arguments[0], int(arguments[1]), int(arguments[2])
    core = native.load()
    server = Side(core, descriptor, 1, spin)
    children.ready()
    if mode == "echo":
        core.lib.bare_echo(server.side)
        return
    side, views, answer = server.side, server.views, core.lib.bare_reply_and_next
    length = core.lib.bare_next(side)
    while length:
        number, text = decode_request(views[length])
        reply = encode(handle(number, text))
        length = answer(side, reply, len(reply))
