"""Owns transactions."""

import os

import trio

from atoll.ipc.errors import DeadlineExceeded, PeerDied
from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves

from .interface import How, Purse


class Ledger(Interface):
    """As much of the ledger as it uses."""

    @call("write")
    def join_in(self, key: str, value: int) -> None: ...

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

    @Purse.move.serve
    async def move(self, key: str, value: int, how: How = "put", hold: bool = False) -> int:
        async with self.rows.transaction(deadline=60.0) as tx:
            tx.put(key, value)
            shared = tx.share(self.ledger)
            try:
                if how == "put":
                    await shared.join_in(key, value)
                elif how == "put_and_die":
                    await shared.put_and_die(key, value)
                else:
                    await shared.with_(deadline=0.3).put_and_wait(key, value)
            except (PeerDied, DeadlineExceeded):
                tx.put(f"{key} failed", value)
            if hold:
                self._holds.set()
                await self._goes.wait()
        assert tx.revision is not None
        return tx.revision

    @Purse.held.serve
    async def held(self) -> None:
        await self._holds.wait()

    @Purse.let_go.serve
    async def let_go(self) -> None:
        self._goes.set()

    @Purse.die.serve
    def die(self) -> None:
        os._exit(3)
