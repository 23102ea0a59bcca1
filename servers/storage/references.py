"""Reference rows: who keeps which blobs alive.

One row per (badge of the caller, owner, name), holding all addresses that it keeps, 32 bytes each: a
batch of 500 texts is one row of 16 KB and not 500 rows. The badge comes from the capability table, so
nobody can release what another holds.
"""

from contextlib import AbstractAsyncContextManager

from msgspec import Struct

from atoll.ipc.keyed_lock import KeyedLock
from atoll.ipc.keyspace import Keyspace, settled

from .interface import HASH_BYTES


class Reference(Struct, frozen=True, array_like=True):
    """Addresses, one after another, and the bytes of their blobs together."""

    hashes: bytes
    size: int = 0

    def split(self) -> list[bytes]:
        return [self.hashes[at : at + HASH_BYTES] for at in range(0, len(self.hashes), HASH_BYTES)]


def _key(badge: int, owner: str, name: str = "") -> str:
    return f"{badge:016x}/{owner}/{name}"


class References:
    """The rows, asked of the store each time: a view of them all would need memory for every reference."""

    def __init__(self, rows: Keyspace[Reference]) -> None:
        self._rows = rows
        rows.keep_remote()
        self._locks = KeyedLock[str]()

    def alone(self, badge: int, owner: str, name: str) -> AbstractAsyncContextManager[None]:
        """One at a time for each row: who writes it finds what the one before has left."""
        return self._locks.holding(_key(badge, owner, name))

    async def put(self, badge: int, owner: str, name: str, hashes: list[bytes], size: int) -> int:
        """Replaces the row; returns the revision at which it is durable."""
        return await settled(self._rows.put(_key(badge, owner, name), Reference(b"".join(hashes), size)))

    async def find(self, badge: int, owner: str, name: str) -> Reference:
        """What the row holds; empty if there is none."""
        return await self._rows.get(_key(badge, owner, name)) or Reference(b"")

    async def remove(self, badge: int, owner: str, name: str) -> None:
        await settled(self._rows.delete(_key(badge, owner, name)))

    async def names(self, badge: int, owner: str, after: str, limit: int) -> list[str]:
        prefix = _key(badge, owner)
        start = f"{prefix}{after}\0" if after else prefix
        rows = self._rows.range(start, prefix[:-1] + "0", limit=limit)
        return [row.key.removeprefix(prefix) async for row in rows]

    async def size(self, badge: int) -> int:
        """Bytes that all rows of a badge hold."""
        rows = self._rows.range(f"{badge:016x}/", f"{badge:016x}0")
        return sum([row.value.size async for row in rows if row.value is not None])

    async def all_hashes(self) -> set[bytes]:
        """Every address that a row names. A row committed before the call and not removed during it is
        among those read, although the pages are of different moments: rows are never moved.
        """
        found: set[bytes] = set()
        async for row in self._rows.range():
            if row.value is not None:
                found.update(row.value.split())
        return found
