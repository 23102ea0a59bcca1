"""One granted buffer: a memfd that the kernel makes, fills, seals, empties and lets go. (Raw cffi.)

Whatever touches pages takes as long as there are pages (a gigabyte: a third of a second), so `grants` has it done in a
thread; each such method says so, and gives up the interpreter's lock while it works.

What a buffer's seals are depends on who may ever write it:
- `writable`: whoever has it. Sealed against changes of size, and against further seals, so that no holder can keep the
  kernel from punching it empty.
- `readonly`: who has it writable before its first reader, and nobody after. The kernel maps it writable first, and seals
  it against future writing when a reader comes: the mappings that exist then go on writing, readers see what they write,
  and the kernel can still overwrite it.
- `immutable`: nobody. Filled with what another one held, then sealed against writing.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal

import trio

from atoll.ipc.buffer import BufferMode
from atoll.native import ffi, lib, segments

from .memory import undumped
from .parties import Party

CHUNK = 16 << 20
F_SETSIG, F_SETLEASE = 10, 1024


def short_of_descriptors(error: OSError) -> bool:
    """Whether there may be enough of them later."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


class Buffer:
    """Owns descriptor and, where it may have to be overwritten, a mapping."""

    def __init__(
        self, number: int, owner: Party, size: int, mode: BufferMode, *,
        of_server: bool = False, note: bytes = b"", source: Buffer | None = None,
    ) -> None:  # fmt: skip
        """`source`: another one whose content it is to be a copy of."""
        self.number = number
        self.owner = owner
        self.size = size
        self.mode = mode
        self.of_server = of_server
        """It is its owner's server's, whichever process runs that."""
        self.note = note
        self.source = source
        """What it is a copy of. Kept only where it stands in for that one in others' hands."""
        self.shares: dict[int, BufferMode] = {}
        """By the channel over which it was shared: messages of that channel may name it at the other end."""
        self.copies: dict[BufferMode, Buffer] = {}
        """What others have in its place, where its mode does not let them have the memory itself."""
        self.changing = trio.Lock()
        """Held while its pages or its shares change."""
        self.given = False
        """It was shared, if with nobody any more: who was asked to unmap it, or has gone, may map it still."""
        self.spent = False
        """It was taken back: former holders may still map the pages, so nobody is to be given them again."""
        self.over = False
        """It has begun to end."""
        self._descriptor = -1
        self._map: mmap.mmap | None = None

    # pages: in a thread -------------------------------------------------------------------------------------

    def make(self) -> None:
        """Preallocate it, fill it, seal it. `OSError` with nothing left behind."""
        self._descriptor = os.memfd_create(f"buffer {self.number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._descriptor, self.size)
            os.posix_fallocate(self._descriptor, 0, self.size)
            if self.source is not None:
                self._fill(self.source)
            if self.mode == "readonly":
                self._map = undumped(self._descriptor, self.size)
                segments.seal(self._descriptor, segments.SIZE)
            else:
                segments.seal(self._descriptor, segments.SEALS[self.mode])
            if self.source is not None and self.mode == "readonly":
                self.close_to_writers()
        except BaseException:
            self.close()
            raise

    def _fill(self, source: Buffer) -> None:
        with mmap.mmap(source._descriptor, source.size, mmap.MAP_SHARED, mmap.PROT_READ) as held:
            done = 0
            while done < self.size:
                done += os.pwrite(self._descriptor, memoryview(held)[done : done + CHUNK], done)

    def empty(self) -> None:
        """Take what it holds from everyone who maps it: they read zeros. Not of an immutable one."""
        if not self._punch() and self._map is not None:
            with ffi.from_buffer(self._map) as memory:
                lib.atoll_zero(memory, self.size)

    def give_back(self) -> bool:
        """Give the pages back to the machine, whoever maps them; False where seals forbid it."""
        return self.mode != "immutable" and self._punch()

    def _punch(self) -> bool:
        problem = int(lib.atoll_punch(self._descriptor, 0, self.size))
        if problem == errno.EPERM:
            return False
        if problem:
            raise OSError(problem, os.strerror(problem))
        return True

    def close(self) -> None:
        """Let go of it. The pages are free when nobody maps them any more."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # seals and descriptors ----------------------------------------------------------------------------------

    def close_to_writers(self) -> None:
        """Let nobody map a `readonly` buffer for writing any more. `PermissionError` where a holder has sealed it against
        seals."""
        wanted = segments.SEALS["readonly"]
        if segments.seals(self._descriptor) & wanted != wanted:
            segments.seal(self._descriptor, wanted)

    @property
    def closed_to_writers(self) -> bool:
        return bool(segments.seals(self._descriptor) & segments.F_SEAL_FUTURE_WRITE)

    def open(self, mode: BufferMode) -> int:
        """A descriptor to hand over, the caller's: a description of its own, by which `mapped` tells that it is in use.

        `BlockingIOError` where a holder has a lease on it: the kernel does not wait for its end.
        """
        access = os.O_RDWR if mode == "writable" else os.O_RDONLY
        return os.open(f"/proc/self/fd/{self._descriptor}", access | os.O_CLOEXEC | os.O_NONBLOCK)

    def mapped(self) -> bool:
        """Whether anyone but the kernel has it open or mapped. Asked of Linux, not of the holders: it grants a lease for
        writing only where no other description of the file is open, and a mapping keeps its description."""
        try:
            look = self.open("readonly")
        except BlockingIOError:
            return True
        except OSError as error:
            if not short_of_descriptors(error):
                raise
            return True  # it is asked again
        try:
            # If anyone opens it in this moment Linux tells us: by a signal that is ignored, not by SIGIO, which kills.
            fcntl.fcntl(look, F_SETSIG, signal.SIGURG)
            fcntl.fcntl(look, F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return True
        finally:
            os.close(look)  # which ends the lease
        return False
