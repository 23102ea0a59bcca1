"""`clean`: what dead nodes left, removed. Sockets, control groups, processes; never what a node knows."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from .node import Place
from .processes import end_survivors
from .slices import choose
from .versions import Versions


async def clean_all(root: Path, folders: list[Path] | None) -> list[str]:
    """Clean these folders, or all nodes under `root` that do not run. Returns a sentence for each thing done."""
    found = _nodes(root) if folders is None else folders
    done: list[str] = []
    for folder in found:
        done += await clean(folder.absolute())
    return done


def _nodes(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/journal"))


async def clean(folder: Path) -> list[str]:
    """Clean one node's folder; one that runs is left alone. Raises `FileNotFoundError` where there is no node."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A survivor of a dead kernel may hold it, too: `state` shares the lock.
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if holder.isdigit() and os.access(f"/proc/{holder}", os.F_OK):
                return [f"{folder.name}: it runs (process {holder}); nothing was touched"]
        return await _clean(folder)
    finally:
        os.close(lock)


async def _clean(folder: Path) -> list[str]:
    done = []
    place = Place(name=_name(folder), folder=folder, image_path="", degrade=False)
    ended = await end_survivors(place.marker)
    if ended:
        done.append(f"{folder.name}: ended {len(ended)} processes")
    slices = choose(place.group)
    left = await slices.clean()
    done += [f"{folder.name}: {sentence}" for sentence in left]
    with suppress(FileNotFoundError):
        place.socket.unlink()
        done.append(f"{folder.name}: removed {place.socket.name}")
    Versions(folder / "versions").clean()
    return done


def _name(folder: Path) -> str:
    from . import journal

    book = journal.open_(folder / "journal")
    try:
        return book.identity.node
    finally:
        book.close()
