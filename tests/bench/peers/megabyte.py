"""The floor of a bulk hand-over: of two C processes one writes 1 MiB, the other reads it in full.

Both copy, from and to private memory. `copies` is the same two copies in one process: what the bytes alone
cost.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import children, native
from ..frame import Block
from ..placement import Placement
from .ring import SPIN, Side

BYTES = 1 << 20


def _private(core: Any) -> Any:
    memory = core.ffi.new("char[]", BYTES)
    core.ffi.memmove(memory, os.urandom(BYTES), BYTES)
    return memory


@contextmanager
def pair(placement: Placement) -> Iterator[Block]:
    core = native.load()
    ring, buffer = os.memfd_create("bare-ring"), os.memfd_create("bare-buffer")
    os.ftruncate(ring, core.lib.bare_bytes())
    os.ftruncate(buffer, BYTES)
    spin = SPIN if placement.client != placement.server else 0
    try:
        with (
            children.served(
                "peers.megabyte", ring, buffer, spin, core=placement.server, descriptors=[ring, buffer]
            ),
            mmap.mmap(buffer, BYTES) as mapped,
        ):
            client, private, shared = Side(core, ring, 0, spin), _private(core), core.ffi.from_buffer(mapped)
            yield lambda n: float(core.lib.bulk_write(client.side, shared, private, BYTES, n))
            core.lib.bare_say_end(client.side)
            core.ffi.release(shared)
    finally:
        os.close(ring)
        os.close(buffer)


@contextmanager
def copies(placement: Placement) -> Iterator[Block]:
    core = native.load()
    shared, source, target = (_private(core) for _ in range(3))
    yield lambda n: float(core.lib.bulk_copy_twice(shared, source, target, BYTES, n))


def main(arguments: list[str]) -> None:
    ring, buffer, spin = (int(argument) for argument in arguments)
    core = native.load()
    server, private = Side(core, ring, 1, spin), _private(core)
    with mmap.mmap(buffer, BYTES) as mapped:
        shared = core.ffi.from_buffer(mapped)
        children.ready()
        core.lib.bulk_read(server.side, shared, private, BYTES)
        core.ffi.release(shared)
