"""Making a file durable under its final name, and what a crash may leave of it.

A file is written under `tmp/`, fsynced, moved to its name, and the folder that holds the name is fsynced.
A crash before the move leaves rubbish in `tmp/` only (removed at the next start); a crash after it leaves
a whole file. So a name under `blobs/` or `packs/` always stands for all its bytes, and nothing is
acknowledged before the folder's fsync has returned.
"""

import os
from pathlib import Path

from atoll.ipc.folders import sync_folder


def make_folder(folder: Path) -> None:
    """Make `folder`, durable in its parent, if it is not there."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)


def install(temporary: Path, final: Path) -> None:
    """Give a fsynced temporary file its name, replacing what stood there, and make the name durable."""
    temporary.replace(final)
    sync_folder(final.parent)


def install_new(temporary: Path, final: Path) -> None:
    """As `install`, but raises FileExistsError if the name is taken: two processes never share a pack's
    number. If the name cannot be made durable it is taken back.
    """
    os.link(temporary, final)
    try:
        temporary.unlink()
        sync_folder(final.parent)
    except OSError:
        final.unlink()
        raise


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte: a regular file may take less than asked when the disk is nearly full, then raises
    OSError.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
