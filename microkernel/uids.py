"""User ids of servers: one each from the image's range when root boots, the same at every boot, since files have owners."""

import os
from pathlib import Path

import msgspec

from atoll.ipc.folders import sync_folder

from .image import Uids as Range
from .ownership import make_folder
from .protection.process import SHARED_UID


class Uids:
    def __init__(self, path: Path, range: Range, root: bool) -> None:
        self._path = path
        self._range = range
        self._root = root
        self._known: dict[str, int] = {}
        if root and path.exists():
            self._known = msgspec.json.decode(path.read_bytes(), type=dict[str, int])

    def of(self, server: str) -> int | None:
        """The server's own user id; None without root. Raises `OSError` where the range has none left."""
        if not self._root:
            return None
        if server not in self._known:
            used = {SHARED_UID, *self._known.values()}
            free = next(
                (uid for uid in range(self._range.first, self._range.last + 1) if uid not in used), None
            )
            if free is None:
                raise OSError(f"the image's user ids {self._range} are all taken: widen [node] uids")
            known = {**self._known, server: free}
            self._write(known)
            self._known = known  # not before: what is not there the next boot gives to another server
        return self._known[server]

    def owner(self, uid: int) -> str | None:
        """The server whose user id it is; empty: one that a server may get yet; None: no server's."""
        known = next((server for server, its in self._known.items() if its == uid), None)
        if self._root and known is None and self._range.first <= uid <= self._range.last:
            return ""
        return known

    def _write(self, known: dict[str, int]) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(msgspec.json.encode(known))
            out.flush()
            os.fsync(descriptor)
        os.rename(fresh, self._path)
        sync_folder(self._path.parent)


def give(folder: Path, uid: int | None) -> None:
    """Make a folder, and all in it, a server's own. What has the right owner is left alone."""
    make_folder(folder, 0o700)
    if uid is None or folder.stat().st_uid == uid:
        return
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(os.path.join(place, name), uid, uid, follow_symlinks=False)
    os.chown(folder, uid, uid)
