"""The memory behind regions, as the kernel makes, seals and passes it.

Every descriptor travels through the kernel: this server has buffers made in its account, names them by
number, and has them unmapped in its own process at once. It neither reads nor writes what its clients keep.
"""

from typing import Literal, Protocol

import trio

from atoll.ipc.capability import Buffer
from atoll.ipc.runtime import own_kernel

Mode = Literal["writable", "readonly", "immutable"]


class Buffers(Protocol):
    """Makes and takes back memory. `handle` names a buffer to the maker and to nobody else."""

    async def make(self, size: int) -> int:
        """A buffer of `size` bytes of zeros, preallocated and sealed against shrinking and growing; its
        handle.

        Raises QuotaExceeded when the server's own account has no more.
        """
        ...

    def view(self, handle: int, mode: Mode) -> Buffer:
        """The buffer as it may stand in a reply: whoever gets the reply has it mapped.

        Writable: the memory itself. Read-only: a copy, as it was when it was first viewed so.
        """
        ...

    async def seal(self, handle: int) -> int:
        """The same content, immutable for good; its handle. If it is another one the old buffer is there as
        well, for the caller to release.
        """
        ...

    async def release(self, handle: int) -> None:
        """Take it back. What is not immutable reads zeros from now on, wherever it is mapped."""
        ...


class KernelBuffers:
    """See `Buffers`. A step that has begun is finished even if the call it is for is cancelled, so that no
    buffer is left without a name.
    """

    def __init__(self) -> None:
        self._kernel = own_kernel.kernel()
        self._immutable: set[int] = set()

    async def make(self, size: int) -> int:
        with trio.CancelScope(shield=True):
            made = await self._kernel.buffer(size)
        own_kernel.forget(made)
        return made.number

    def view(self, handle: int, mode: Mode) -> Buffer:
        return Buffer(memoryview(b""), mode, handle)

    async def seal(self, handle: int) -> int:
        if handle in self._immutable:
            return handle
        with trio.CancelScope(shield=True):
            made = await self._kernel.buffer_seal(handle)
            own_kernel.forget(made)
            self._immutable.add(made.number)
        return made.number

    async def release(self, handle: int) -> None:
        with trio.CancelScope(shield=True):
            if handle in self._immutable:
                self._immutable.remove(handle)
            else:
                await self._kernel.buffer_revoke(handle)
            await self._kernel.buffer_release(handle)
