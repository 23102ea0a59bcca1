"""`clean`: what dead nodes left, removed. Sockets, control groups, processes; never what a node knows."""

import os
from contextlib import suppress
from pathlib import Path

from . import journal
from .ownership import become_kernel, end_left
from .place import Place
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
        kernel = become_kernel(lock)
        if kernel:
            return [f"{folder.name}: it runs (process {kernel}); nothing was touched"]
        return await _clean(folder)
    finally:
        os.close(lock)


async def _clean(folder: Path) -> list[str]:
    place = Place(name=_name(folder), folder=folder, image_path="", degrade=False)
    done = [f"{folder.name}: {sentence}" for sentence in await end_left(place)]
    with suppress(FileNotFoundError):
        place.socket.unlink()
        done.append(f"{folder.name}: removed {place.socket.name}")
    Versions(folder / "versions").clean()
    return done


def _name(folder: Path) -> str:
    book = journal.open_(folder / "journal")
    try:
        return book.identity.node
    finally:
        book.close()
