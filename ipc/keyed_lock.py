"""One at a time for each key: a lock that is there for as long as somebody holds it or waits for it."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)


class KeyedLock(Generic[Key]):
    def __init__(self) -> None:
        self._locks: dict[Key, trio.Lock] = {}

    def __len__(self) -> int:
        """Keys that somebody holds or waits for."""
        return len(self._locks)

    @asynccontextmanager
    async def holding(self, key: Key) -> AsyncIterator[None]:
        """Whoever comes to its block finds what the one before has left."""
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            # Who waited and was cancelled comes here late: by then the key may have another lock.
            if not lock.locked() and self._locks.get(key) is lock:
                del self._locks[key]
