"""The power goes before any step by which the keyring or its root key is replaced: whatever of it had reached the disk, it
opens; and once a purge was acknowledged, nothing on the disk gives the key back."""

import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from atoll.servers.keys.keyring import Keyring
from atoll.servers.keys.root import FileRoot

ANN, BOB = bytes(17), bytes(1) + b"b" * 16
"""Labels, of the first generation."""
BADGE = 7
STEPS = ("open", "fsync", "rename", "unlink", "pwrite")
Listing = dict[str, int]
"""The inodes of a folder by name."""
State = frozenset[tuple[str, bytes]]
"""Each file and what is in it."""


def ring(home: Path) -> Keyring:
    """In folders apart, as a node has them: either may be durable without the other."""
    found = Keyring(home / "keyring", FileRoot(home / "root"))
    found.open(None, 1)
    return found


def folders(home: Path) -> Path:
    for name in ("keyring", "root"):
        (home / name).mkdir(parents=True)
    return home


class Disk:
    """What a power cut may leave. Of a file's content: what was there at its last fsync, what was written since, or half of
    that. Of a folder's names: those of its last fsync, or those after any step since; steps in one folder keep their order,
    as in a file system with a journal."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self._real = {name: getattr(os, name) for name in STEPS}
        self._home = home
        self._held: dict[int, int] = {}
        """A descriptor of each inode that had a name: none of these numbers is given out again."""
        self._synced: dict[int, bytes] = {}
        self._listings: dict[Path, list[Listing]] = {}
        """Of each folder: the durable one, and those since."""
        self.cuts: dict[State, bool] = {}
        """What may be there at some step, and whether the change had been acknowledged by then."""
        for folder in home.iterdir():
            self._listings[folder] = [self._listing(folder)]
        self._synced = {inode: self._content(inode) for inode in self._held}
        for name in STEPS:
            patch.setattr(os, name, self._step(name))

    def _listing(self, folder: Path) -> Listing:
        found = {entry.name: entry.inode() for entry in os.scandir(folder)}
        for name, inode in found.items():
            if inode not in self._held:
                self._held[inode] = self._real["open"](folder / name, os.O_RDONLY)
        return found

    def _content(self, inode: int) -> bytes:
        return os.pread(self._held[inode], 1 << 20, 0)

    def _step(self, name: str) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            self.cut()
            result = self._real[name](first, *rest, **named)
            if name == "fsync":
                self._sync(Path(os.readlink(f"/proc/self/fd/{first}")), os.fstat(first).st_ino)
            return result

        return call

    def _sync(self, path: Path, inode: int) -> None:
        if path in self._listings:
            self._listings[path] = [self._listing(path)]
        else:
            self._synced[inode] = self._content(inode)

    def cut(self, *, acknowledged: bool = False) -> None:
        for folder, listings in self._listings.items():
            if (now := self._listing(folder)) != listings[-1]:
                listings.append(now)
        for chosen in product(*self._listings.values()):
            files = {
                f"{folder.name}/{name}": inode
                for folder, listing in zip(self._listings, chosen, strict=True)
                for name, inode in listing.items()
            }
            for contents in product(*map(self.may_hold, files.values())):
                state = frozenset(zip(files, contents, strict=True))
                self.cuts[state] = self.cuts.get(state, False) or acknowledged

    def may_hold(self, inode: int) -> set[bytes]:
        synced, now = self._synced.get(inode, b""), self._content(inode)
        return {now} if now == synced else {synced, now, now[: len(now) // 2]}

    def everything(self) -> Iterator[bytes]:
        """What may lie anywhere, under a name or none."""
        for inode in self._held:
            yield from self.may_hold(inode)

    def close(self) -> None:
        for held in self._held.values():
            os.close(held)


def laid(home: Path, state: State) -> Path:
    folders(home)
    for name, content in state:
        (home / name).write_bytes(content)
    return home


def make(home: Path) -> None:
    ring(home)


def purge(home: Path) -> None:
    ring(home).purge([(BADGE, ANN[1:])], 5)


def rotate(home: Path) -> None:
    ring(home).rotate(9, seeds=True)


@pytest.mark.parametrize("change", [make, purge, rotate], ids=lambda change: change.__name__)
def test_a_power_cut_at_any_step_leaves_a_ring_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    home = folders(tmp_path / "home")
    before = None if change is make else ring(home)
    old = () if before is None else tuple(before.key(BADGE, label) for label in (ANN, BOB))
    keys = [] if before is None else before.root.keys()
    with monkeypatch.context() as patched:
        disk = Disk(home, patched)
        change(home)
        disk.cut(acknowledged=True)
    after = ring(home)
    new = tuple(after.key(BADGE, label) for label in (ANN, BOB))
    assert len(disk.cuts) > 10, "the steps were seen"
    for number, (state, acknowledged) in enumerate(disk.cuts.items()):
        found = ring(laid(tmp_path / str(number), state))
        told = tuple(found.key(BADGE, label) for label in (ANN, BOB))
        assert told == new or (not acknowledged and (told == old or change is make))
        assert not acknowledged or found.contents == after.contents
    for lying in disk.everything():
        assert not [key for key in keys if key in lying], "the root key that was is overwritten for good"
    disk.close()
