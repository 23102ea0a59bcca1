"""A folder in `tmp/` for what one process is writing.

It is locked while the process lives: two versions of the server may be up at once during a swap, and
neither may remove what the other writes. A start empties what dead processes left and takes one of their
folders over, so that a server whose disk is full can start, serve and collect: a new folder might find no room.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class Workplace:
    """Raises OSError where none can be had."""

    def __init__(self, folder: Path) -> None:
        self._names = 0
        kept = _left_over(folder)
        while kept is None:
            kept = _locked(Path(tempfile.mkdtemp(dir=folder)))
        self.folder, self._lock = kept

    def temporary(self) -> Path:
        """A name for a file, which no one else uses."""
        self._names += 1
        return self.folder / str(self._names)

    def leave(self) -> None:
        """Give it up; the next process takes it over."""
        os.close(self._lock)


def _left_over(folder: Path) -> tuple[Path, int] | None:
    """One of the folders that nobody holds any more, emptied and locked; the others are removed."""
    kept: tuple[Path, int] | None = None
    for path in sorted(folder.iterdir()):
        held = _locked(path) if path.is_dir() else None
        if held is None:
            continue
        if kept is None:
            kept = held
            for file in path.iterdir():
                file.unlink()
        else:
            shutil.rmtree(path)
            os.close(held[1])
    return kept


def _locked(path: Path) -> tuple[Path, int] | None:
    """The folder with the descriptor that locks it; None if another process holds or has removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return path, descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # a process that lives has the lock, or one that starts beside this has removed the folder: it is not ours
    os.close(descriptor)
    return None
