"""Holds granted buffers, and lends some."""

import ctypes
import os
from pathlib import Path

from atoll.ipc.buffer import Buffer
from atoll.ipc.deferred import Deferred
from atoll.ipc.runtime import own_kernel
from atoll.ipc.serve import Serves
from atoll.ipc.system.kernel import BufferMade

from .interface import Keeper


class Server(Serves[Keeper]):
    def __init__(self) -> None:
        self._held: Buffer | None = None
        self._lending: list[Deferred[Buffer]] = []
        self._mapped_at_start = _mapped()

    def _buffer(self) -> Buffer:
        assert self._held is not None
        return self._held

    @Keeper.keep.serve
    def keep(self, buffer: Buffer) -> str:
        self._held = buffer
        return buffer.mode

    @Keeper.name.serve
    def name(self, buffer: Buffer) -> int:
        view = buffer.view
        return 0 if view.readonly else ctypes.addressof(ctypes.c_char.from_buffer(view))

    @Keeper.held.serve
    def held(self, length: int) -> bytes:
        return bytes(self._buffer().view[:length])

    @Keeper.total.serve
    def total(self) -> int:
        return sum(self._buffer().view.cast("q"))

    @Keeper.write.serve
    def write(self, data: bytes) -> str:
        try:
            self._buffer().view[: len(data)] = data
        except TypeError as error:
            return str(error)
        return "written"

    @Keeper.forget.serve
    def forget(self) -> None:
        handle = self._buffer().handle
        self._held = None
        own_kernel.forget(BufferMade(number=handle, token=handle))

    @Keeper.maps.serve
    def maps(self) -> int:
        return _mapped()

    @Keeper.mapped_at_start.serve
    def mapped_at_start(self) -> int:
        return self._mapped_at_start

    @Keeper.lend.serve
    async def lend(self, size: int) -> Buffer:
        made = own_kernel.buffer(await own_kernel.kernel().buffer(size, "readonly"))
        made.view[:4] = b"lent"
        self._held = made
        return made

    @Keeper.lend_later.serve
    def lend_later(self) -> Deferred[Buffer]:
        self._lending.append(Deferred())
        return self._lending[-1]

    @Keeper.settle.serve
    def settle(self) -> bool:
        if not self._lending:
            return False
        self._lending.pop().complete(self._buffer())
        return True

    @Keeper.settle_in_a_task.serve
    async def settle_in_a_task(self) -> bool:
        return self.settle()

    @Keeper.die.serve
    def die(self) -> None:
        os._exit(3)


def _mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:buffer ")
