"""Owns transactions."""

import os

import trio

from atoll.ipc.errors import DeadlineExceeded, PeerDied
from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves

from .interface import How, Purse, Step


class Ledger(Interface):
    """As much of the ledger as it uses."""

    @call("write")
    def join_in(self, key: str, value: int, halt: str = "") -> None: ...

    @call("write", once=True)
    def add_once(self, key: str, halt: str = "") -> int: ...

    @call("write")
    def put_and_die(self, key: str, value: int) -> None: ...

    @call("write")
    def put_and_wait(self, key: str, value: int) -> None: ...


class Server(Serves[Purse]):
    rows: Keyspace[int]
    ledger: Ledger

    async def start(self) -> None:
        self.rows.keep_remote()
        self._holds, self._goes = trio.Event(), trio.Event()
        self._moves, self._none = 0, trio.Event()

    @Purse.move.serve
    async def move(self, key: str, value: int, how: How = "put", halt: Step = "") -> int:
        self._moves += 1
        try:
            return await self._move(key, value, how, halt)
        finally:
            self._moves -= 1
            if not self._moves:
                self._none.set()
                self._none = trio.Event()

    async def _move(self, key: str, value: int, how: How, halt: Step) -> int:
        async with self.rows.transaction(deadline=60.0) as tx:
            await self._at("begun", halt)
            tx.put(key, value)
            await tx.savepoint()  # which tells the store
            await self._at("told", halt)
            shared = tx.share(self.ledger)
            try:
                if how == "put":
                    await shared.join_in(key, value, halt)
                elif how == "add_once":
                    await shared.add_once(key, halt)
                elif how == "put_and_die":
                    await shared.put_and_die(key, value)
                else:
                    await shared.with_(deadline=0.3).put_and_wait(key, value)
            except (PeerDied, DeadlineExceeded):
                tx.put(f"{key} failed", value)
            await self._at("answered", halt)
        await self._at("committed", halt)
        assert tx.revision is not None
        return tx.revision

    async def _at(self, step: Step, halt: Step) -> None:
        if step == halt:
            self._holds.set()
            await self._goes.wait()

    @Purse.held.serve
    async def held(self) -> None:
        await self._holds.wait()

    @Purse.let_go.serve
    async def let_go(self) -> None:
        self._goes.set()
        self._holds, self._goes = trio.Event(), trio.Event()

    @Purse.ended.serve
    async def ended(self) -> None:
        if self._moves:
            await self._none.wait()

    @Purse.die.serve
    def die(self) -> None:
        os._exit(3)
