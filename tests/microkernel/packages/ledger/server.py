"""Keeps nothing in memory."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from atoll.ipc.errors import Aborted
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.serve import Serves

from .interface import Entry, Ledger


class Server(Serves[Ledger]):
    rows: Keyspace[int]

    async def start(self) -> None:
        self.rows.keep_remote()
        self._holds, self._goes = trio.Event(), trio.Event()

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

    @Ledger.join_in.serve
    async def join_in(self, key: str, value: int, halt: str = "") -> None:
        await self._at("asked", halt)
        async with self.rows.transaction() as tx:
            tx.put(key, value)
        await self._at("written", halt)

    @Ledger.add_once.serve
    async def add_once(self, key: str, halt: str = "") -> int:
        counted = await settled(self.rows.update(key, lambda before: (before or 0) + 1))
        await self._at("written", halt)
        return counted

    async def _at(self, step: str, halt: str) -> None:
        if step == halt:
            self._holds.set()
            await self._goes.wait()

    @Ledger.held.serve
    async def held(self) -> None:
        await self._holds.wait()

    @Ledger.let_go.serve
    async def let_go(self) -> None:
        self._goes.set()
        self._holds, self._goes = trio.Event(), trio.Event()

    @Ledger.put_and_die.serve
    async def put_and_die(self, key: str, value: int) -> None:
        await settled(self.rows.put(key, value))
        os._exit(3)

    @Ledger.put_and_wait.serve
    async def put_and_wait(self, key: str, value: int) -> None:
        await settled(self.rows.put(key, value))
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), suppress(Aborted):
                await settled(self.rows.put(f"{key} late", value))

    @Ledger.entries.serve
    async def entries(self, after: int = 0) -> AsyncIterator[Entry]:
        async for change in self.rows.watch(after):
            for row in change.rows:
                yield Entry(row.key, row.value or 0, change.revision)
