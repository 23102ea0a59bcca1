"""Updates of one row by several calls: each waits for the one before, and is made for its own call all the same."""

from collections.abc import Callable
from typing import Any

import trio
from msgspec.msgpack import encode

from atoll.ipc.context import Call, Fields, SystemClock, in_hand, inherited
from atoll.ipc.errors import Conflict
from atoll.ipc.future import RawFuture
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import State, Write
from atoll.ipc.transport import Layer, Options


class Slow(Layer):
    """A capability on the store that answers nothing before it is told to."""

    def __init__(self, state: State) -> None:
        super().__init__(transport_of(state))
        self.answers: list[Callable[[], None]] = []
        self.commits: list[tuple[int, float | None]] = []
        """Trace and deadline of each, as a channel has them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        made, reply = inherited(options, method), RawFuture()
        if method is State.commit.spec:
            self.commits.append((made.trace, made.until))

        def answer() -> None:
            try:
                reply.complete(self.inner.start(method, payload, options).result())
            except Conflict as error:
                reply.fail(error)

        self.answers.append(answer)
        return reply


def asked_by(trace: int, deadline: float | None) -> Call:
    return Call(
        Fields(method="Rows.add", client=1, request=trace, trace=trace, deadline=deadline), SystemClock()
    )


def test_an_update_that_waits_for_another_is_made_for_its_own_call() -> None:
    """It was made for nobody's: without its trace, its deadline and its class."""
    store = MemoryStore()
    slow = Slow(store.keyspace(int).state)
    rows = Keyspace[int](bind(State, slow), int)
    trio.run(rows.load)
    done = []
    for trace, deadline in ((1, None), (2, 9e9), (3, None)):
        with in_hand(asked_by(trace, deadline)):
            done.append(rows.update("a", lambda before: (before or 0) + 1))
    while slow.answers:
        slow.answers.pop(0)()
    assert [each.result() for each in done] == [1, 2, 3]
    assert slow.commits == [(1, None), (2, 9e9), (3, None)]


def test_an_update_that_has_to_ask_is_made_for_its_own_call() -> None:
    """Once the store had answered, no call was in hand: so it was in every keyspace that is not followed, and after others'
    writes in each."""
    store = MemoryStore()
    state = store.keyspace(int).state
    slow = Slow(state)
    rows = Keyspace[int](bind(State, slow), int)
    with in_hand(asked_by(1, 9e9)):
        done = rows.update("a", lambda before: (before or 0) + 1)
    slow.answers.pop(0)()
    state.commit.start([Write(b"a", encode(5))]).result()  # somebody else's, in between
    while slow.answers:
        slow.answers.pop(0)()
    assert done.result() == 6
    assert slow.commits == [(1, 9e9), (1, 9e9)]
