"""Keeps nothing in memory."""

from collections.abc import AsyncIterator

from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.serve import Serves

from .interface import Entry, Ledger


class Server(Serves[Ledger]):
    rows: Keyspace[int]

    async def start(self) -> None:
        self.rows.keep_remote()

    @Ledger.put.serve
    async def put(self, key: str, value: int) -> int:
        revision = await settled(self.rows.put(key, value))
        row = await self.rows.row(key)
        if row is None or row.revision < revision:
            raise RuntimeError(f"{key} was written at {revision} and reads as {row}")
        return revision

    @Ledger.get.serve
    async def get(self, key: str) -> int | None:
        return await self.rows.get(key)

    @Ledger.all.serve
    async def all(self) -> dict[str, int]:
        return {row.key: row.value or 0 async for row in self.rows.range()}

    @Ledger.past.serve
    async def past(self, key: str) -> list[int]:
        return [row.value or 0 for row in await self.rows.history(key)]

    @Ledger.entries.serve
    async def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        async for change in self.rows.watch(after):
            for row in change.rows:
                yield Entry(row.key, row.value or 0, change.revision)
