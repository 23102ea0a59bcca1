"""A file that holds a secret: replaced as a whole, and what it held before is overwritten.

Written beside its name, synced, renamed, the folder synced: whoever dies in between leaves the old one or the new
one. The old one's bytes are then overwritten where they lie. A file system that writes elsewhere (btrfs, ZFS), and
every SSD, keeps them all the same until it has other use for their place: nobody is told when.
"""

import os
from pathlib import Path

from atoll.ipc.folders import sync_folder

MODE = 0o600
BESIDE = ".new"


def read(path: Path) -> bytes | None:
    """What it holds; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def replace(path: Path, content: bytes) -> None:
    """Raises OSError; then the file is as it was, or as it was to be."""
    beside = path.with_name(path.name + BESIDE)
    old = _opened(path)
    try:
        _give_up(beside)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, path)
        sync_folder(path.parent)
        if old is not None:
            _overwrite(old)
    finally:
        if old is not None:
            os.close(old)


def _give_up(beside: Path) -> None:
    """What somebody left there who died before it got its name: with the new secret it may have those of before."""
    left = _opened(beside)
    if left is not None:
        try:
            _overwrite(left)
            os.unlink(beside)
        finally:
            os.close(left)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _overwrite(descriptor: int) -> None:
    """The name is another file's by now, or no secret's: this one has only the descriptor."""
    size = os.fstat(descriptor).st_size
    os.pwrite(descriptor, bytes(size), 0)
    os.fsync(descriptor)
