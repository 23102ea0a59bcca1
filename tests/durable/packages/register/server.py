"""A second server: it counts what it is told, by a keyed call or within the caller's transaction.

It stays at the point that a file names for as long as it does, so that a test can end it there: `before noted 3`, with
nothing done of that call; `after noted 3`, with its effect made, and committed where it is its own to commit, and no reply
sent.
"""

from collections import defaultdict
from pathlib import Path

import trio

from atoll.ipc import Keyspace, Serves
from atoll.ipc.keyspace import settled

from .interface import Register


class Server(Serves[Register]):
    rows: Keyspace[int]
    outside: Path

    async def start(self) -> None:
        self._reached: defaultdict[str, trio.Event] = defaultdict(trio.Event)

    @Register.note.serve
    async def note(self, key: str) -> int:
        return await self._count(key)

    @Register.enter.serve
    async def enter(self, key: str) -> int:
        return await self._count(key)

    async def _count(self, key: str) -> int:
        await self._pass(f"before {key}")
        counted = await settled(self.rows.update(key, lambda before: (before or 0) + 1))
        await self._pass(f"after {key}")
        return counted

    async def _pass(self, point: str) -> None:
        hold = self.outside / "hold"
        while hold.exists() and hold.read_text() == point:
            self._reached[point].set()
            await trio.sleep(0.01)

    @Register.reached.serve
    async def reached(self, point: str) -> None:
        await self._reached[point].wait()

    @Register.counts.serve
    async def counts(self) -> dict[str, int]:
        return {row.key: row.value or 0 async for row in self.rows.range()}
