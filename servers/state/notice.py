"""How a reader process learns of commits: the kernel tells who watches a file when it was written (inotify).

LMDB writes the meta page last, when the log has the commit on the disk, and the notice comes after the
write. So nobody has to tell the readers anything: no channel from the writer, no polling, and a reader that
hangs costs the writer nothing.
"""

import ctypes
import os
from collections.abc import AsyncIterator

import trio

from .checkpoint import DATA_FILE

_MODIFY = 0x2
_LOOKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds after a notice at which a reader looks once more: LMDB tells the new transaction's number to readers only after it
has written the page that the notice is about, and the writer may be off its core in between."""
_libc = ctypes.CDLL(None, use_errno=True)


async def changes_of_file(folder: str) -> AsyncIterator[None]:
    """One item whenever the store's file was written since the last item. Raises OSError where inotify is
    denied."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1: a reader needs it to follow the writer")
    try:
        if _libc.inotify_add_watch(descriptor, os.path.join(folder, DATA_FILE).encode(), _MODIFY) < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch on {folder}")
        while True:
            yield
            for pause in _LOOKS:
                with trio.move_on_after(pause) as scope:
                    await trio.lowlevel.wait_readable(descriptor)
                if not scope.cancelled_caught:
                    break
                yield
            else:
                await trio.lowlevel.wait_readable(descriptor)
            while True:
                try:
                    os.read(descriptor, 65536)
                except BlockingIOError:
                    break
    finally:
        os.close(descriptor)
