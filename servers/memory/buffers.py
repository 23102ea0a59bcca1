"""The memory behind regions, as the kernel makes, seals and passes it.

Every descriptor travels through the kernel: this server has buffers made in its account, names them by number, and has
them unmapped in its own process at once. It neither reads nor writes what its clients keep. The buffers are the server's
and not the process's: the next process finds them, with the note that says what they are and the clients that have them.
"""

from typing import NamedTuple, Protocol

import trio

from atoll.ipc.buffer import Buffer, BufferMode
from atoll.ipc.errors import NotFound
from atoll.ipc.runtime import own_kernel
from atoll.ipc.system.kernel import BufferRow


class Held(NamedTuple):
    """A buffer that a process before this one may have made."""

    handle: int
    size: int
    sealed: bool
    note: bytes
    clients: dict[int, BufferMode]
    """Who has it, and how."""


class Buffers(Protocol):
    """Makes and takes back memory. `handle` names a buffer to the maker and to nobody else."""

    async def make(self, size: int, note: bytes) -> int:
        """A buffer of `size` bytes of zeros, preallocated and sealed against shrinking and growing; its
        handle.

        Raises QuotaExceeded when the server's own account has no more.
        """
        ...

    async def share(self, handle: int, client: int, mode: BufferMode) -> None:
        """Give a client the buffer: the memory itself, whatever the mode. From its first reader on nobody can be given it
        writable any more: BadRequest. Raises NotFound for a client or a buffer that is gone."""
        ...

    def view(self, handle: int, mode: BufferMode) -> Buffer:
        """The buffer as it may stand in a reply to a client that it is shared with so."""
        ...

    async def unshare(self, handle: int, client: int) -> None:
        """Ask a client to unmap it."""
        ...

    async def seal(self, handle: int) -> int:
        """The same content and note, immutable for good; its handle. The old buffer is there as well, for the caller to
        release."""
        ...

    async def release(self, handle: int) -> None:
        """Take it back. What is not immutable reads zeros from now on, wherever it is mapped."""
        ...

    async def held(self) -> list[Held]:
        """Every buffer of this server's."""
        ...


class KernelBuffers:
    """See `Buffers`. A step that has begun is finished even if the call it is for is cancelled, so that no
    buffer is left without a name.
    """

    def __init__(self) -> None:
        self._kernel = own_kernel.kernel()
        self._immutable: set[int] = set()

    async def make(self, size: int, note: bytes) -> int:
        with trio.CancelScope(shield=True):
            made = await self._kernel.buffer(size, "readonly", True, note)
        own_kernel.forget(made)
        return made.number

    async def share(self, handle: int, client: int, mode: BufferMode) -> None:
        await own_kernel.share(handle, client, mode)

    def view(self, handle: int, mode: BufferMode) -> Buffer:
        return Buffer(memoryview(b""), mode, handle)

    async def unshare(self, handle: int, client: int) -> None:
        with trio.CancelScope(shield=True):
            await self._kernel.buffer_unshare(handle, client)

    async def seal(self, handle: int) -> int:
        with trio.CancelScope(shield=True):
            made = await self._kernel.buffer_seal(handle)
        own_kernel.forget(made)
        self._immutable.add(made.number)
        return made.number

    async def release(self, handle: int) -> None:
        with trio.CancelScope(shield=True):
            try:
                if handle not in self._immutable:
                    await self._kernel.buffer_revoke(handle)
                await self._kernel.buffer_release(handle)
            except NotFound:  # the process before this one was about to release it, and has
                pass
        self._immutable.discard(handle)

    async def held(self) -> list[Held]:
        rows = list[BufferRow]()
        while more := await self._kernel.buffers(rows[-1].number if rows else 0):
            rows += more
        self._immutable.update(row.number for row in rows if row.mode == "immutable")
        return [
            Held(row.number, row.size, row.mode == "immutable", row.note, dict(row.shares))
            for row in rows
            if row.note
        ]
