"""Whose a node's folder is: one kernel's, and before it does anything, nobody else's.

Two locks on one file. The first belongs to an open description, which the kernel passes to `state`: a survivor of a dead
boot still holds it, so nobody can write the store beside it. The second ends with the kernel's process and cannot be
handed on: it tells a node that runs from one whose kernel is dead. (Closing any descriptor of the file gives the second
one up, so the kernel opens it once.)
"""

import fcntl
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import trio

from atoll.ipc.folders import sync_folder

from .place import Place
from .remains import END_WITHIN, end_survivors, survivors
from .room import needing_room
from .slices import choose, hierarchy

_LOCK = struct.Struct("@hhqqi4x")
"""`struct flock` of fcntl(2): kind, origin, start, length, process."""


class BootRefused(Exception):
    """The node cannot be booted; the message is one sentence with the remedy."""


def room_to_boot(folder: Path) -> AbstractContextManager[None]:
    """For what a boot itself writes: a few hundred KiB. Raises `BootRefused` on a disk that has not as much."""
    return needing_room(
        folder, BootRefused, "free a MiB or more there, then boot again; the store is as it was"
    )


class Owned(NamedTuple):
    """A node's folder that is ours."""

    lock: int
    """The open description that holds it."""
    fresh: bool
    """It was made for this boot."""


def own(place: Place, say: Callable[[str], None]) -> Owned:
    """Own a node's folder, made if it is not there. Raises `BootRefused` where another node holds it, or where no folder
    can be.

    What a dead kernel left is ended first: its `state` shares the lock."""
    folder = place.folder
    fresh = not folder.exists()
    try:
        make_folder(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootRefused(
            f"this user cannot have a node in {folder} ({error.strerror}): boot with another --folder"
        ) from None
    kernel = become_kernel(lock)
    if kernel:
        os.close(lock)
        raise BootRefused(
            f"a node runs in {folder} already (its kernel is process {kernel}): "
            "stop it with `atoll shutdown`, or boot with another --folder"
        )
    for sentence in trio.run(end_left, place):
        say(f"left over: {sentence}")
    if not _shared_lock(lock):
        raise BootRefused(f"another program holds the lock of {folder}: boot with another --folder")
    with room_to_boot(folder):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return Owned(lock, fresh)


def disown(place: Place, owned: Owned) -> None:
    """Give a folder up in which nothing has been done yet; a fresh one goes."""
    if owned.fresh:
        shutil.rmtree(place.folder)
    os.close(owned.lock)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Make a folder, and have the ones above it remember that it is there, whatever happens to the host. In none of those
    that are made can others write, whatever this process's umask lets through: what is in them could be replaced."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=mode if each == folder else 0o755, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


async def end_left(place: Place) -> list[str]:
    """End the processes of a node whose kernel is dead, and remove its control groups. Returns a sentence for what was
    done, and for what could not be. Raises `BootRefused`."""
    left = survivors(place.marker)
    said: list[str] = []
    # The groups first: what one of them keeps frozen hears no signal.
    with trio.move_on_after(END_WITHIN) as groups:
        said = await choose(place.group).clean()
    stuck = {survivor.pid for survivor in await end_survivors(place.marker)}
    if groups.cancelled_caught:
        stuck |= {pid for folder in hierarchy.left_by(place.group) for pid in hierarchy.members(folder)}
    if stuck:
        raise BootRefused(
            f"processes of the last boot cannot be ended ({', '.join(map(str, sorted(stuck)))}): a control group keeps "
            "them frozen, or they wait for a device; thaw or end them, then try again"
        )
    if left:
        said.insert(0, f"ended {len(left)} processes that the last boot left")
    return said


def become_kernel(lock: int) -> int:
    """Say that this process is the kernel of the node with this lock, until it ends or closes the file: 0. Else the
    process that is."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return int(_LOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))[4])
    return 0


def _shared_lock(lock: int) -> bool:
    """Take the lock of this description and of whoever it is passed to. False: a survivor of a dead boot has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
