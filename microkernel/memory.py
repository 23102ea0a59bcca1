"""Shared memory that the kernel makes: preallocated, sealed and mapped before anyone else sees it.

Memory that only the kernel may write is mapped writable first and then sealed against future writing, so a
descriptor of it gives nobody else a writable mapping. What a process writes itself is sealed against changes of
size only, so that nobody's mapping can be cut short.
"""

import mmap
import os
from contextlib import suppress

from atoll.native import segments

PAGE = mmap.PAGESIZE


def undumped(descriptor: int, size: int) -> mmap.mmap:
    """A mapping that no core file has, also where a host takes cores of processes that may write none (a pipe as its
    `core_pattern`): others' words pass through it."""
    mapped = mmap.mmap(descriptor, size)
    mapped.madvise(mmap.MADV_DONTDUMP)
    return mapped


class Memory:
    """One memfd and the kernel's mapping of it; owns both."""

    def __init__(
        self, name: str, size: int, *, written_by_others: bool = False, preallocate: bool = True
    ) -> None:
        """Raises `OSError` (ENOSPC, EMFILE) with nothing left behind. What the kernel itself writes is
        preallocated: it must not find out at a store that memory has run out."""
        self.size = -(-size // PAGE) * PAGE
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size)
            if preallocate:
                os.posix_fallocate(self.descriptor, 0, self.size)
            self.map = undumped(self.descriptor, self.size)
            kept = segments.F_SEAL_SHRINK | segments.F_SEAL_GROW | segments.F_SEAL_SEAL
            only_ours = 0 if written_by_others else segments.F_SEAL_FUTURE_WRITE
            segments.seal(self.descriptor, kept | only_ours)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Let go of it. The pages live on for whoever else has them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with suppress(
                BufferError
            ):  # whoever still holds a view of the mapping keeps it; it goes with them
                self.map.close()
