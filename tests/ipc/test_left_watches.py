"""Whoever stops watching a keyspace, by whichever way, ends the watch at the store."""

from contextlib import aclosing
from typing import Any

import pytest
import trio

from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import State
from atoll.ipc.transport import Layer, Options


class Watched:
    """A stream of the store's."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.cancelled = False

    async def receive(self) -> list[bytes] | None:
        found: list[bytes] | None = await self.inner.receive()
        return found

    def cancel(self) -> None:
        self.cancelled = True
        self.inner.cancel()


class Watching(Layer):
    """A capability on the store, whose streams are looked at."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.opened: list[Watched] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        self.opened.append(Watched(self.inner.open(method, payload, options)))
        return self.opened[-1]


async def in_a_block(rows: Keyspace[int]) -> None:
    async with aclosing(rows.watch(0)) as changes:
        async for change in changes:
            assert [row.value for row in change.rows] == [1]
            break


async def in_a_loop(rows: Keyspace[int]) -> None:
    async for change in rows.watch(0):
        assert [row.value for row in change.rows] == [1]
        break


@pytest.mark.parametrize("leaves", [in_a_block, in_a_loop])
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
def test_a_watch_that_is_left(leaves: Any) -> None:
    """Each went on at the store, until that took nothing more of the server that had asked."""
    store = MemoryStore()
    rows = store.keyspace(int)
    watching = Watching(rows.state)

    async def main() -> None:
        watched = Keyspace[int](bind(State, watching), int)
        await settled(watched.put("a", 1))
        await leaves(watched)

    trio.run(main)
    (stream,) = watching.opened
    assert stream.cancelled
