"""The keyring: one file, sealed under the root key, replaced as a whole.

It holds what no backup of rows has: the tree of seeds from which every subject's data key is made, and the index key
of which those of the keyspaces are. So any copy of it, with its root key, opens whatever was sealed since it was
made, but for whom it does not know to be purged: a copy from before a purge undoes the purge, and must not be kept.
Where one is put back, the store's rows say again which purges it does not know; a mark shows that they are the ring's own.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from atoll.ipc import chance

from . import files
from .root import Root
from .tree import SEED, Kept, Tree

FILE: Final = "keyring"
MAGIC: Final = b"atoll keyring 1\n"
GENERATIONS: Final = 256
"""At most: a value says its own in one byte."""
NONCE: Final = 12
MARK: Final = 16


class Unreadable(Exception):
    """The keyring and the root key do not belong together, or one of them is damaged or gone."""

    def __init__(self, where: Path, why: str) -> None:
        super().__init__(f"{where}: {why}; put back the keyring and the root key that belong together")


class Made(Struct, frozen=True, array_like=True):
    """One purge in one keyspace."""

    number: int
    badge: int
    tag: bytes
    time: int
    by_server: bool = False
    """Whether the keyspace's own server asked for it; else a person did."""


class Contents(Struct, kw_only=True):
    id: bytes
    """By which the store knows its keyring."""
    index: bytes
    seeds: list[list[Kept]]
    """By generation, oldest first. A purge is of all; by the newest is sealed."""
    badges: list[int] = []
    """The keyspaces that were ever opened: a purge by a person is of all of them."""
    purges: list[Made] = []
    number: int = 1
    """Of the last purge; 1 before the first, since 0 is what whoever knows of none says."""
    rotated: int = 0


class Keyring:
    """What is in memory is what is on the disk, once a method has returned."""

    def __init__(self, folder: Path, root: Root) -> None:
        self._path = folder / FILE
        self.root = root
        self._contents: Contents | None = None
        self._trees: list[Tree] = []

    @property
    def contents(self) -> Contents:
        assert self._contents is not None, "the ring is open"
        return self._contents

    @property
    def opened(self) -> bool:
        return self._contents is not None

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0

    def open(self, known: bytes | None, now: int) -> None:
        """Read it, or make the first. `known`: the id of the one that the store's rows were sealed with, if there is any.
        Raises `KeysLocked`, `Unreadable`, OSError."""
        held, keys, settled = files.read(self._path), self.root.keys(), self.root.settled()
        if held is not None:
            contents = _unsealed(self._path, held, keys)
        elif settled or known is not None:
            raise Unreadable(self._path, "there is none, and there was one")
        else:
            contents = Contents(id=chance.secret(8), index=chance.secret(SEED), seeds=[_fresh()], rotated=now)
        if known not in (None, contents.id):
            raise Unreadable(self._path, "it is another node's than the rows of this store")
        self._take(contents)
        if not settled:  # it is the first, or whoever replaced it last died before the end
            self._replace()

    def close(self) -> None:
        """As before `open`."""
        self._contents = None

    def try_key(self, key: bytes) -> bool:
        """Whether a root key opens what is there, or nothing is."""
        held = files.read(self._path)
        return held is None or _opens(held, key) is not None

    def index(self, badge: int) -> bytes:
        """The index key of a keyspace."""
        return hmac.digest(self.contents.index, badge.to_bytes(8, "big"), sha256)

    @property
    def generation(self) -> int:
        """By whose keys is sealed."""
        return len(self._trees) - 1

    def key(self, badge: int, label: bytes) -> bytes | None:
        """The data key of a label; empty: its subject was purged; None: there is no such generation."""
        generation, tag = label[0], label[1:]
        if generation >= len(self._trees):
            return None
        leaf = self._trees[generation].leaf(place(badge, tag))
        return (
            b"" if leaf is None else hmac.digest(leaf, b"data key" + badge.to_bytes(8, "big") + tag, sha256)
        )

    def know(self, badge: int) -> None:
        """The keyspace is one of those that a purge is of. Raises OSError."""
        if badge not in self.contents.badges:
            self.contents.badges.append(badge)
            self._replace()

    def purge(
        self, subjects: Iterable[tuple[int, bytes]], now: int, *, by_server: bool = False
    ) -> list[Made]:
        """Forget the keys of subjects, in one step; gives those that were not purged before. Raises OSError: then it
        is as it was, or done."""
        number = self.contents.number + 1
        made = [Made(number, *who, now, by_server) for who in subjects if self._prune(*who)]
        if made:
            self.contents.number = number
            self.contents.purges += made
        if made or not self.root.settled():
            self._replace()
        return made

    def purge_again(self, purges: Iterable[Made], last: int) -> list[Made]:
        """Forget the keys of whom this copy of the ring does not know to be purged; gives these. As `purge`. `last`: the
        highest number that any purge has had."""
        contents = self.contents
        contents.number = max(contents.number, last)
        known = {(each.badge, each.tag) for each in contents.purges}
        made = [each for each in purges if (each.badge, each.tag) not in known]
        for each in made:
            self._prune(each.badge, each.tag)
        if made:
            contents.purges = sorted([*contents.purges, *made], key=lambda each: each.number)
            contents.badges += sorted({each.badge for each in made} - set(contents.badges))
            self._replace()
        return made

    def mark(self, made: Made) -> bytes:
        """What a purge's row has to show that it is of this ring: nobody who has only the store can make one."""
        told = b"".join(number.to_bytes(8, "big") for number in (made.number, made.badge, made.time))
        return hmac.digest(self.contents.index, b"purge" + told + made.tag, sha256)[:MARK]

    def asked_by_server(self, badge: int) -> int:
        """How many purges the server of a keyspace has made there."""
        return sum(each.by_server for each in self.contents.purges if each.badge == badge)

    def is_purged(self, badge: int, tag: bytes) -> bool:
        return all(tree.leaf(place(badge, tag)) is None for tree in self._trees)

    def _prune(self, badge: int, tag: bytes) -> bool:
        """False: it was, in all generations."""
        pruned = [tree.prune(place(badge, tag)) for tree in self._trees]
        return any(pruned)

    def rotate(self, now: int, *, seeds: bool = False) -> None:
        """A new root key; with `seeds`, a new generation. Raises OSError."""
        self.contents.rotated = now
        if seeds:
            fresh = Tree(_fresh())
            for each in self.contents.purges:
                fresh.prune(place(each.badge, each.tag))
            self._trees.append(fresh)
        self._replace()

    def made(self, badge: int, after: int) -> list[Made]:
        """The purges of a keyspace after a number."""
        return [each for each in self.contents.purges if each.number > after and each.badge == badge]

    def made_since(self, number: int) -> list[Made]:
        """All purges after a number; none of a ring that is not open."""
        return [each for each in self.contents.purges if each.number > number] if self.opened else []

    def _take(self, contents: Contents) -> None:
        self._contents = contents
        self._trees = [Tree(kept) for kept in contents.seeds]

    def _replace(self) -> None:
        self.contents.seeds = [list(tree.kept()) for tree in self._trees]
        try:
            key = self.root.begin()
            nonce = chance.secret(NONCE)
            sealed = AESGCM(key).encrypt(nonce, msgspec.msgpack.encode(self.contents), MAGIC)
            files.replace(self._path, MAGIC + nonce + sealed)
            self.root.end()
        except OSError:
            self._contents = None  # whether it was replaced, the disk says
            held = files.read(self._path)
            if held is not None:
                keys = self.root.keys()
                self._take(_unsealed(self._path, held, keys))
                self.root.stay(next(key for key in keys if _opens(held, key) is not None))
            raise


def _fresh() -> list[Kept]:
    return [(0, 0, chance.secret(SEED))]


def place(badge: int, tag: bytes) -> int:
    """Where a subject is in the tree."""
    return int.from_bytes(sha256(badge.to_bytes(8, "big") + tag).digest()[:8], "big")


def _opens(held: bytes, key: bytes) -> bytes | None:
    nonce = held[len(MAGIC) : len(MAGIC) + NONCE]
    try:
        return AESGCM(key).decrypt(nonce, held[len(MAGIC) + NONCE :], MAGIC)
    except (InvalidTag, ValueError):
        return None


def _unsealed(path: Path, held: bytes, keys: list[bytes]) -> Contents:
    if not held.startswith(MAGIC):
        raise Unreadable(path, "it is no keyring of this version")
    if not keys:
        raise Unreadable(path, "there is no root key to open it with")
    for key in keys:
        plain = _opens(held, key)
        if plain is not None:
            try:
                return msgspec.msgpack.decode(plain, type=Contents)
            except msgspec.DecodeError:
                raise Unreadable(path, "it is no keyring of this version") from None
    raise Unreadable(path, "its root key does not open it")
