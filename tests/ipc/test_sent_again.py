"""What is written for nobody's call, to a store that dies over it once it is durable, and to which it is sent again."""

from typing import Any

import trio

from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import State
from atoll.ipc.transport import Layer, Options


class SentAgain(Layer):
    """A capability on the store, whose first commit is sent to it twice; what the first one came to nobody hears."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.left = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        if method is State.commit.spec and self.left:
            self.left -= 1
            self.inner.start(method, payload, options)
        return self.inner.start(method, payload, options)


def test_an_update_in_the_background_takes_effect_once() -> None:
    """It was in conflict with itself, and made again."""
    store = MemoryStore()
    sent = SentAgain(store.keyspace(int).state)
    rows = Keyspace[int](bind(State, sent), int)

    async def main() -> None:
        assert await settled(rows.update("a", lambda before: (before or 0) + 1)) == 1
        assert not sent.left
        assert await rows.get("a") == 1
        assert len(await rows.history("a")) == 1

    trio.run(main)
