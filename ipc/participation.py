"""How what a handler reads and writes takes part in a transaction that is committed elsewhere.

A call under a transaction takes part in that one, at the store, and whoever began it commits. A step of a workflow
collects what it does, and commits it with the record that it ran (`durable/effects.py`).
"""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from .context import Call, Clock, Fields
from .deferred import Deferred
from .errors import AtollError
from .future import Future
from .system.state import Item, State, Write

R = TypeVar("R")


class Part(Protocol):
    """A share in a transaction. `state` is a keyspace's capability; keys and writes are as it has them."""

    def read(self, state: State, key: bytes) -> Deferred[Item | None]:
        """The key as the transaction sees it; it must still be so when that is committed."""
        ...

    def write(
        self, state: State, writes: list[Write], seen: Callable[[int], None], *, new: bool = False
    ) -> Deferred[None]:
        """Writes with it. `seen` may be told the revision once it is committed. `new`: as `State.append` does."""
        ...

    async def whole(self) -> bytes:
        """The right to take part at the store: the id of a transaction there, or of a part of one."""
        ...


class Joined:
    """A share in a transaction of the caller's."""

    __slots__ = ("_id",)

    def __init__(self, id: bytes) -> None:
        self._id = id

    def read(self, state: State, key: bytes) -> Deferred[Item | None]:
        return arriving(state.read.start(self._id, key))

    def write(
        self, state: State, writes: list[Write], seen: Callable[[int], None], *, new: bool = False
    ) -> Deferred[None]:
        how = state.append if new else state.commit
        return arriving(how.start(writes, transaction=self._id)).then(lambda _: None)

    async def whole(self) -> bytes:
        return self._id


class TakingPart(Call):
    """A call in hand that takes part in what `part` commits."""

    __slots__ = ("part",)

    def __init__(self, fields: Fields, clock: Clock, part: Part) -> None:
        super().__init__(fields, clock)
        self.part = part

    @property
    def transaction(self) -> bytes:
        return b""


def part_of(call: Call) -> Part:
    """The share of a call that is under a transaction."""
    if isinstance(call, TakingPart):
        return call.part
    assert call.transaction is not None
    return Joined(call.transaction)


def arriving(future: Future[R]) -> Deferred[R]:
    """A reply as a Deferred of this loop."""
    deferred: Deferred[R] = Deferred()
    when(future, deferred.complete, deferred.fail)
    return deferred


def when(future: Future[R], succeed: Callable[[R], None], failed: Callable[[Exception], None]) -> None:
    """Has one of the two called when the reply is in: on this thread, whichever one completes replies."""
    home = threading.get_ident()
    token = trio.lowlevel.current_trio_token() if trio.lowlevel.in_trio_run() else None

    def react() -> None:
        try:
            value = future.result()
        except AtollError as error:
            failed(error)
        else:
            succeed(value)

    def notify() -> None:
        if token is None or threading.get_ident() == home:
            react()
            return
        try:
            token.run_sync_soon(react)
        except trio.RunFinishedError:
            return  # the loop whose Deferred this was has ended, and with it whoever waited

    future.raw.add_done_callback(notify)
