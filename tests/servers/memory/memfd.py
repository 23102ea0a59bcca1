"""Buffers made in this process: anonymous files with seals, as the kernel makes them, for a test without
one.

The mechanisms are the real ones: preallocated, sealed against shrinking and growing before anyone sees them, against
`FUTURE_WRITE` when the first reader comes, against `WRITE` what is immutable, zeros written through the kept mapping when
taken back.
"""

import fcntl
import mmap
import os

from atoll.ipc.buffer import Buffer, BufferMode
from atoll.ipc.errors import BadRequest, NotFound, QuotaExceeded
from atoll.servers.memory.buffers import Held

FUTURE_WRITE = 0x0010
"""F_SEAL_FUTURE_WRITE (Linux 5.1); the fcntl module of Python 3.11 does not name it."""
SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Made:
    """One buffer. `writable` is kept until it is sealed: what is taken back is overwritten through it."""

    def __init__(self, size: int, note: bytes) -> None:
        self.descriptor = os.memfd_create("atoll region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = size
        self.note = note
        self.clients: dict[int, BufferMode] = {}
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError:
            os.close(self.descriptor)
            raise QuotaExceeded("memory server", "bytes of this machine's memory", size) from None
        self.writable: mmap.mmap | None = mmap.mmap(self.descriptor, size)
        self.seal(SIZE)

    def seal(self, seals: int) -> None:
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    @property
    def closed(self) -> bool:
        return bool(fcntl.fcntl(self.descriptor, fcntl.F_GET_SEALS) & FUTURE_WRITE)

    def give_back(self) -> None:
        if self.writable is not None:
            self.writable[:] = bytes(self.size)
        os.close(self.descriptor)


class MemfdBuffers:
    """See `atoll.servers.memory.buffers.Buffers`; a handle is a descriptor."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    async def make(self, size: int, note: bytes) -> int:
        made = Made(size, note)
        self._made[made.descriptor] = made
        return made.descriptor

    def _of(self, handle: int) -> Made:
        if handle not in self._made:
            raise NotFound("buffer", str(handle))
        return self._made[handle]

    async def share(self, handle: int, client: int, mode: BufferMode) -> None:
        made = self._of(handle)
        if mode == "writable" and made.closed and made.clients.get(client) != mode:
            raise BadRequest("share", "readonly", mode)
        if mode == "readonly" and not made.closed:
            made.seal(FUTURE_WRITE)
        made.clients[client] = mode

    def view(self, handle: int, mode: BufferMode) -> Buffer:
        made = self._of(handle)
        if mode == "writable":
            assert made.writable is not None, "a sealed buffer has no writable mapping"
            return Buffer(memoryview(made.writable), mode, handle)
        mapping = mmap.mmap(made.descriptor, made.size, prot=mmap.PROT_READ)
        return Buffer(memoryview(mapping), mode, made.descriptor)

    async def unshare(self, handle: int, client: int) -> None:
        self._of(handle).clients.pop(client, None)

    async def seal(self, handle: int) -> int:
        old = self._of(handle)
        made = Made(old.size, old.note)
        assert made.writable is not None and old.writable is not None
        made.writable[:] = old.writable[:]
        made.writable.close()
        made.writable = None
        made.seal(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        self._made[made.descriptor] = made
        return made.descriptor

    async def release(self, handle: int) -> None:
        self._made.pop(handle).give_back()

    async def held(self) -> list[Held]:
        return [
            Held(handle, made.size, made.writable is None, made.note, dict(made.clients))
            for handle, made in self._made.items()
        ]
