"""The node's own record is not kept for ever: log lines, recorded calls and the kernel's rows are deleted when they are
old enough.

The first two lie in keyspaces of their own that keep nothing of what was deleted, in the order of their times for each
process; the kernel's tables in the order of boots, and in each in that of what began. So the old ones are at the beginning,
and a sweep looks at what it deletes, at what began as early and was over later, or still is, and at one row more. Refusals,
which lie in no such order, are looked at one and all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import trio

from atoll.ipc.errors import AtollError, DecodeFaults
from atoll.ipc.system.calls import PREFIX, ChunkRow, OpeningRow
from atoll.ipc.system.records import LOG, AnyRow, LogRow, after, decode
from atoll.ipc.system.state import Item, Write, absolute, relative

from .keeping import Kept, tables
from .node import Node
from .parties import Serving

EVERY = 600.0
"""Seconds between two sweeps; the first is at boot."""
PAGE = 200
"""Rows that are looked at, and deleted, at a time."""
NUMBER = 8
"""Bytes of the number that ends the key of a row in these tables."""
PAUSE = 0.05
"""Seconds between two pages: a sweep is in no hurry."""


class Expiry:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def keep(self) -> None:
        """Sweep now and then. Runs as long as the kernel."""
        while True:
            with suppress(AtollError):  # the store is down, or full: there is a next time
                await self.sweep()
            await trio.sleep(EVERY)

    async def sweep(self) -> None:
        """Delete what is too old."""
        node = self._node
        if node.image.node.keep_log is not None:
            before = node.now() - int(node.image.node.keep_log * 1e9)
            await self._delete(node.keyspaces[LOG], LogRow, before)
        if node.image.node.keep_calls is not None:
            before = node.now() - int(node.image.node.keep_calls * 1e9)
            for name in [name for name in node.keyspaces if name.startswith(PREFIX)]:
                await self._calls(node.keyspaces[name], before)
        for kept in tables(node.image.keep, node.boot):
            await self._rows(kept, node.now() - int(kept.age * 1e9))

    async def _rows(self, kept: Kept, before: int) -> None:
        """Of one of the kernel's tables, what tells of something that was over before a time."""
        table, keyspace = kept.table, self._node.store.keyspace
        start, end = table.key_of(), after(table.key_of())
        more = True
        while more:
            page = await self._node.store.state.range(
                absolute(keyspace, start), absolute(keyspace, end), PAGE
            )
            more, old = page.more, []
            for item in page.items:
                start = relative(item.key)[1] + b"\0"
                row = _row(table, item)
                if row is None:
                    continue
                if kept.began(row) >= before:
                    start = kept.next(row)
                    more = bool(start)
                    break
                over = kept.over(row)
                if over is not None and over < before:
                    old.append(item.key)
            if old:
                await self._commit(old)

    async def _calls(self, keyspace: int, before: int) -> None:
        await self._delete(keyspace, ChunkRow, before)
        alive = {party.number for party in self._node.parties.values() if isinstance(party, Serving)}
        async for item in self._from(keyspace, OpeningRow.table, after(OpeningRow.table)):
            row = _row(OpeningRow, item)
            if row is None or (row.boot == self._node.boot and row.process in alive):
                continue
            start = absolute(keyspace, ChunkRow.key_of(row.boot, row.process))
            if not (await self._node.store.state.range(start, after(start), 1)).items:
                await self._commit([item.key])

    async def _delete(self, keyspace: int, table: type[LogRow | ChunkRow], before: int) -> None:
        """Of each process's rows, which lie in the order of their times, those from before a time."""
        start, end = table.key_of(), after(table.key_of())
        while True:
            page = await self._node.store.state.range(
                absolute(keyspace, start), absolute(keyspace, end), PAGE
            )
            if not page.items:
                return
            old, start = [], relative(page.items[-1].key)[1] + b"\0"
            for item in page.items:
                row = _row(table, item)
                if row is not None and row.time >= before:
                    start = after(
                        relative(item.key)[1][:-NUMBER]
                    )  # past what differs in its last number alone
                    break
                old.append(item.key)
            if old:
                await self._commit(old)

    async def _commit(self, keys: list[bytes]) -> None:
        await self._node.store.state.commit([Write(key) for key in keys], note="expiry of records")
        await trio.sleep(PAUSE)

    async def _from(self, keyspace: int, start: bytes, end: bytes) -> AsyncIterator[Item]:
        while True:
            page = await self._node.store.state.range(
                absolute(keyspace, start), absolute(keyspace, end), PAGE
            )
            for item in page.items:
                yield item
            if not page.more or not page.items:
                return
            start = relative(page.items[-1].key)[1] + b"\0"


def _row(table: type[AnyRow], item: Item) -> AnyRow | None:
    """None: it is no row, or lies where it does not belong; a server may have written anything there. By the key of what is
    a row a sweep finds on."""
    try:
        row = decode(table, item.value or b"")
        return row if row.key() == relative(item.key)[1] else None
    except (*DecodeFaults, OverflowError):
        return None
