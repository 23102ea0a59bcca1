"""The kernel's part of `atoll backup` and `atoll restore`: package versions, and what makes a folder a node's.

A version is named by the hash of its content and never changes, so a backup has each once. A restored node gets a journal of
its own: a new identity, and boots counted on from those of the node that was backed up, so that no number of a boot, nor a
commit id that holds one, comes twice in the history that it goes on with. What waited in the old node's journal is in no
revision, and does not come along.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from msgspec import Struct

from atoll.ipc import clock

from . import journal
from .room import needing_room
from .versions import Versions

IMAGE = "image.toml"
"""In a restored node's folder: the image that the node was last booted from."""


class NoRoom(Exception):
    """The disk is full; nothing that was there before has changed."""


def _room(folder: Path) -> AbstractContextManager[None]:
    return needing_room(folder, NoRoom, "what was there before is whole; free room there, and run it again")


class Kept(Struct, frozen=True):
    """Whose versions they are, and how many were copied."""

    node: str
    versions: int


def keep(folder: Path, archive: Path) -> Kept:
    """Copies the package versions of a node that an archive has not. Raises `NoRoom`, `BadRequest` for
    a version that is not what its name says."""
    kept = Versions(archive / "versions")
    kept.clean()
    known = {version.hash for version in kept.all()}
    own = Versions(folder / "versions")
    count = 0
    with _room(archive):
        for version in own.all():
            if version.hash not in known:
                own.verify(version)
                kept.add(version.folder / version.package)
                count += 1
    path = folder / "journal"
    records, _ = journal.parse(path.read_bytes(), str(path))  # not opened: its kernel may be at work
    first = records[0] if records else None
    return Kept(first.node if isinstance(first, journal.Identity) else folder.name, count)


def make_node(archive: Path, folder: Path, name: str, epoch: int, image: str) -> None:
    """Makes a folder that has a restored store in it a node's. Raises `NoRoom`."""
    versions = Versions(folder / "versions")
    with _room(folder):
        for version in Versions(archive / "versions").all():
            versions.add(version.folder / version.package)
        if image:
            (folder / IMAGE).write_text(image)
        journal.create(folder / "journal", name, int(clock.wall() * 1e9), epoch).close()
