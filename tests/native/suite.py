"""The server that the tests of this folder attack. Also what they look at inside its process."""

import gc
import time
from collections.abc import AsyncIterator, Iterator

from msgspec import Struct

from atoll.ipc import Buffer, Deferred, Interface, Serves, call, current, stream, upload
from atoll.ipc.runtime.loop import ServeLoop
from atoll.native import lib


class Begun(Struct):
    """When a handler began: the loop's pass, and CLOCK_MONOTONIC ns."""

    beat: int
    time: int


class Target(Interface):
    @call("read", idempotent=True)
    def double(self, number: int) -> int: ...

    @call("read")
    def mirror(self, data: bytes) -> bytes: ...

    @call("read")
    def swell(self, length: int) -> bytes:
        """So many bytes."""

    @call("read")
    def weigh(self, buffer: Buffer) -> int:
        """How many bytes of it are not 0."""

    @call("read")
    def badge(self) -> int: ...

    @call("write")
    def write(self) -> int: ...

    @call("read")
    def begin(self) -> Begun: ...

    @call("read")
    def begin_async(self) -> Begun: ...

    @call("read")
    def hold(self) -> int: ...

    @call("read")
    def parks(self) -> int:
        """How often the receive loop has gone to sleep."""

    @stream("read")
    def numbers(self, count: int) -> int: ...

    @upload("read", item=int)
    def total(self) -> int: ...


class Server(Serves[Target]):
    def __init__(self) -> None:
        self._held: list[Deferred[int]] = []

    async def start(self) -> None:
        self._loop = next(found for found in gc.get_objects() if isinstance(found, ServeLoop))

    def _begun(self) -> Begun:
        return Begun(self._loop._status_words[8], time.monotonic_ns())

    @Target.double.serve
    def double(self, number: int) -> int:
        return number * 2

    @Target.mirror.serve
    def mirror(self, data: bytes) -> bytes:
        return data

    @Target.swell.serve
    def swell(self, length: int) -> bytes:
        return bytes(length)

    @Target.weigh.serve
    def weigh(self, buffer: Buffer) -> int:
        return len(buffer) - bytes(buffer.view).count(0)

    @Target.badge.serve
    def badge(self) -> int:
        return current().badge

    @Target.write.serve
    def write(self) -> int:
        return 1

    @Target.begin.serve
    def begin(self) -> Begun:
        return self._begun()

    @Target.begin_async.serve
    async def begin_async(self) -> Begun:
        return self._begun()

    @Target.hold.serve
    def hold(self) -> Deferred[int]:
        self._held.append(Deferred())
        return self._held[-1]

    @Target.parks.serve
    def parks(self) -> int:
        return int(lib.atoll_loop_parks(self._loop.c))

    @Target.numbers.serve
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    @Target.total.serve
    async def total(self, items: AsyncIterator[int]) -> int:
        found = 0
        async for item in items:
            found += item
        return found
