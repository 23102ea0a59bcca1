"""Buffers made in this process: anonymous files with seals, as the kernel makes them, for a test without
one.

The mechanisms are the real ones: preallocated, sealed against shrinking and growing before anyone sees them,
`FUTURE_WRITE` for what others may only read, `WRITE` for what is immutable, zeros written through the kept
mapping when taken back.
"""

import fcntl
import mmap
import os
from typing import Literal

from atoll.ipc.capability import Buffer
from atoll.ipc.errors import QuotaExceeded

Mode = Literal["writable", "readonly", "immutable"]

FUTURE_WRITE = 0x0010
"""F_SEAL_FUTURE_WRITE (Linux 5.1); the fcntl module of Python 3.11 does not name it."""
SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Made:
    """One buffer. `writable` is kept until it is sealed: what is taken back is overwritten through it."""

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("atoll region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = size
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError:
            os.close(self.descriptor)
            raise QuotaExceeded("memory server", "bytes of this machine's memory", size) from None
        self.writable: mmap.mmap | None = mmap.mmap(self.descriptor, size)
        self.reading: Made | None = None
        """The copy for whoever may only read."""

    def seal(self, seals: int) -> None:
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals | SIZE | fcntl.F_SEAL_SEAL)

    def copy(self) -> "Made":
        made = Made(self.size)
        assert self.writable is not None and made.writable is not None
        made.writable[:] = self.writable[:]
        return made

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

    def _keep(self, made: Made, seals: int) -> int:
        made.seal(seals)
        self._made[made.descriptor] = made
        return made.descriptor

    async def make(self, size: int) -> int:
        return self._keep(Made(size), 0)

    def view(self, handle: int, mode: Mode) -> Buffer:
        made = self._made[handle]
        if mode == "writable":
            assert made.writable is not None, "a sealed buffer has no writable mapping"
            return Buffer(memoryview(made.writable), mode, handle)
        if mode == "readonly":
            if made.reading is None:
                made.reading = made.copy()
                made.reading.seal(FUTURE_WRITE)
            made = made.reading
        mapping = mmap.mmap(made.descriptor, made.size, prot=mmap.PROT_READ)
        return Buffer(memoryview(mapping), mode, made.descriptor)

    async def seal(self, handle: int) -> int:
        made = self._made[handle].copy()
        assert made.writable is not None
        made.writable.close()
        made.writable = None
        return self._keep(made, fcntl.F_SEAL_WRITE)

    async def release(self, handle: int) -> None:
        made = self._made.pop(handle)
        if made.reading is not None:
            made.reading.give_back()
        made.give_back()
