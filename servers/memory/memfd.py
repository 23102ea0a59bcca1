"""Buffers made in this process: anonymous files with seals, as the kernel makes them, for a node without
one.

In-process nodes (tests, simulation) have no kernel to ask. The mechanisms are the real ones:
preallocated, sealed against shrinking and growing before anyone sees them, `FUTURE_WRITE` before the
first read-only mapping, `WRITE` when immutable, zeros written through the kept mapping when taken back.
"""

import fcntl
import mmap
import os

from atoll.ipc.capability import Buffer
from atoll.ipc.errors import QuotaExceeded

from .buffers import Mode

_FUTURE_WRITE = 0x0010
"""F_SEAL_FUTURE_WRITE (Linux 5.1); the fcntl module of Python 3.11 does not name it."""


class _Made:
    __slots__ = ("descriptor", "sealed", "size", "writable")

    def __init__(self, descriptor: int, size: int, writable: mmap.mmap | None) -> None:
        self.descriptor = descriptor
        self.size = size
        self.writable = writable
        """Kept until the buffer is sealed: what is taken back is overwritten through it."""
        self.sealed = False


class MemfdBuffers:
    def __init__(self) -> None:
        self._made: dict[int, _Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    async def make(self, size: int) -> int:
        return self._keep(*_allocate(size))

    def _keep(self, descriptor: int, size: int) -> int:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._made[descriptor] = _Made(descriptor, size, mmap.mmap(descriptor, size))
        return descriptor

    async def view(self, handle: int, mode: Mode) -> Buffer:
        made = self._made[handle]
        if mode == "writable":
            assert made.writable is not None, "a sealed buffer has no writable mapping"
            return Buffer(memoryview(made.writable), mode, handle)
        if not made.sealed:
            fcntl.fcntl(made.descriptor, fcntl.F_ADD_SEALS, _FUTURE_WRITE)
        mapping = mmap.mmap(made.descriptor, made.size, prot=mmap.PROT_READ)
        return Buffer(memoryview(mapping), mode, handle)

    async def seal(self, handle: int) -> int:
        made = self._made[handle]
        if made.sealed:
            return handle
        assert made.writable is not None
        try:
            made.writable.close()
            fcntl.fcntl(made.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except (BufferError, OSError):
            # Somebody may still write through a mapping: the copy is the region from now on.
            handle = self._copy(made)
        made = self._made[handle]
        made.writable = None
        made.sealed = True
        return handle

    def _copy(self, made: _Made) -> int:
        descriptor, size = _allocate(made.size)
        at = 0
        while at < size:
            at += os.sendfile(descriptor, made.descriptor, at, size - at)
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        )
        self._made[descriptor] = _Made(descriptor, size, None)
        self._give_back(self._made.pop(made.descriptor))
        return descriptor

    async def release(self, handle: int) -> None:
        self._give_back(self._made.pop(handle))

    def _give_back(self, made: _Made) -> None:
        if made.writable is not None and not made.writable.closed:
            made.writable[:] = bytes(made.size)
        os.close(made.descriptor)


def _allocate(size: int) -> tuple[int, int]:
    descriptor = os.memfd_create("atoll region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        raise QuotaExceeded("memory server", "bytes of this machine's memory", size) from None
    return descriptor, size
