"""Counts in rows of its own, and bears witness of what it serves."""

from collections.abc import AsyncIterator

import trio

from atoll.ipc.context import current
from atoll.ipc.deferred import Deferred
from atoll.ipc.durable import Workflow
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves
from tests.simulation import witness

from .interface import Counter, Tick

VERSION = 1


class Server(Serves[Counter]):
    rows: Keyspace[int]

    def __init__(self) -> None:
        self._served = 0

    @Counter.get.serve
    def get(self, key: str) -> int:
        witness.serves(current().badge)
        return self.rows.local.get(key, 0)

    @Counter.add.serve
    def add(self, key: str, by: int = 1) -> Deferred[int]:
        witness.serves(current().badge)
        self._served += 1
        return self.rows.update(key, lambda value: (value or 0) + by)

    @Counter.gather.serve
    async def gather(self, flow: Workflow, key: str, steps: int) -> int:
        for number in range(steps):
            await flow.step(self.one, f"{key}/{number}")
            if number == 0:
                await flow.sleep(0.05)
        return steps

    def one(self, key: str) -> Deferred[int]:
        return self.rows.update(key, lambda value: (value or 0) + 1)

    def may_go_on(self, method: str, version: str) -> bool:
        return True

    @Counter.muse.serve
    async def muse(self, seconds: float) -> int:
        witness.serves(current().badge)
        await trio.sleep(seconds)
        return VERSION

    @Counter.moody.serve
    async def moody(self) -> int:
        witness.serves(current().badge)
        await trio.sleep(0.01)
        return self._served

    @Counter.ticks.serve
    async def ticks(self, after: int = 0) -> AsyncIterator[Tick]:
        witness.serves(current().badge)
        while True:
            after += 1
            yield Tick(after)
            await trio.sleep(0.005)

    def hand_over(self) -> bytes:
        return b"%d" % self._served

    def take_over(self, state: bytes) -> None:
        self._served = int(state)
