"""Handlers that keep to their call, and some that do not."""

import os
import time

from atoll.ipc import Deferred, Keyspace, Serves, current
from atoll.ipc.keyspace import settled
from atoll.ipc.transaction import Transaction

from .interface import Rates, Stamp, Till


class Server(Serves[Till]):
    rows: Keyspace[int]
    rates: Rates

    def __init__(self) -> None:
        self.given = 0

    def hand_over(self) -> bytes:
        return str(self.given).encode()

    def take_over(self, state: bytes) -> None:
        self.given = int(state)

    @Till.total.serve
    def total(self, key: str) -> int:
        return self.rows.local.get(key, 0)

    @Till.add.serve
    def add(self, key: str, by: int) -> Deferred[int]:
        return self.rows.update(key, lambda before: (before or 0) + by)

    @Till.stamp.serve
    async def stamp(self, key: str) -> Stamp:
        call = current()
        made = Stamp(key=key, at=call.now(), die=call.random.randint(1, 1 << 30), id=call.new_id())
        await settled(self.rows.put(key, made.die))
        return made

    @Till.exchange.serve
    async def exchange(self, key: str, currency: str) -> float:
        worth = self.rows.local.get(key, 0) * await self.rates.rate(currency)
        await settled(self.rows.put(f"{key} in {currency}", int(worth)))
        return worth

    @Till.move.serve
    async def move(self, source: str, target: str, by: int) -> list[int]:
        async def body(tx: Transaction[int]) -> list[int]:
            left, more = (await tx.get(source) or 0) - by, (await tx.get(target) or 0) + by
            tx.put(source, left)
            tx.put(target, more)
            return [left, more]

        moved: list[int] = await self.rows.retry(body)
        return moved

    @Till.wild.serve
    def wild(self) -> float:
        return time.time() + os.urandom(1)[0]

    @Till.next.serve
    def next(self) -> int:
        self.given += 1
        return self.given

    @Till.twice.serve
    async def twice(self, key: str, currency: str) -> list[int]:
        """Two reads of the store, and others may write in between."""
        first = await self.rows.get(key)
        await self.rates.rate(currency)
        return [first or 0, await self.rows.get(key) or 0]

    @Till.peek.serve
    async def peek(self, key: str, currency: str) -> list[int]:
        """The same in its local view, which goes on under its hands."""
        first = self.rows.local.get(key, 0)
        await self.rates.rate(currency)
        return [first, self.rows.local.get(key, 0)]

    @Till.versions.serve
    async def versions(self, key: str, limit: int) -> list[int | None]:
        return [row.value for row in await self.rows.history(key, limit)]

    @Till.split.serve
    def split(self, key: str, among: int) -> int:
        if not among:
            os._exit(3)  # planted: what a fault in native code does
        return self.rows.local.get(key, 0) // among
