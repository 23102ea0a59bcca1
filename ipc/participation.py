"""How what a handler reads and writes takes part in a transaction that is committed elsewhere.

A call under a transaction takes part in that one, at the store, and whoever began it commits. A step of a workflow
collects what it does, and commits it with the record that it ran (`durable/effects.py`).
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import trio

from . import chance
from .context import Call, Clock, Fields, current_or_none, in_hand
from .deferred import Deferred
from .errors import AtollError
from .future import Future
from .system.state import Item, Page, State, Write

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

    async def scan(self, state: State, start: bytes, end: bytes, limit: int) -> Page:
        """Rows from `start` up to `end` as the transaction sees them, and where to go on. Nothing may have appeared among
        them, nor gone, when that is committed."""
        ...

    async def whole(self) -> bytes:
        """The right to take part at the store: the id of a transaction there, or of a part of one."""
        ...


class Joined:
    """A share in a transaction of the caller's. Two of one part are the same."""

    __slots__ = ("_id",)

    def __init__(self, id: bytes) -> None:
        self._id = id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joined) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def read(self, state: State, key: bytes) -> Deferred[Item | None]:
        return arriving(lambda: state.read.start(self._id, key))

    async def scan(self, state: State, start: bytes, end: bytes, limit: int) -> Page:
        return await state.scan(self._id, start, end, limit)

    def write(
        self, state: State, writes: list[Write], seen: Callable[[int], None], *, new: bool = False
    ) -> Deferred[None]:
        how = state.append if new else state.commit
        return arriving(lambda: how.start(writes, transaction=self._id)).then(lambda _: None)

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


def new_transaction() -> bytes:
    """A transaction's id, for `State.begin`."""
    return chance.token(16)


def abandon(state: State, transaction: bytes) -> None:
    """Have a transaction end that nobody wants any more, also where nobody heard that it has begun. It goes behind its
    `begin`, so not as a cast, which finds no room in a full ring; and not under the deadline of the call in hand, which may
    be what has ended it."""
    call = current_or_none()
    with in_hand(None if call is None else call.unhurried()), suppress(AtollError):
        state.abort.start(transaction)  # one that cannot even be sent ends by its own deadline


def arriving(ask: Callable[[], Future[R]]) -> Deferred[R]:
    """The reply to what is asked, as a Deferred of this loop."""
    deferred: Deferred[R] = Deferred()
    when(ask, deferred.complete, deferred.fail)
    return deferred


def when(
    ask: Callable[[], Future[R]], succeed: Callable[[R], None], failed: Callable[[Exception], None]
) -> None:
    """Starts a call, and has one of the two called when the reply is in: on this thread, whichever one completes replies. A
    call that cannot even be sent has failed like any other: nobody stands above who could be told otherwise."""
    try:
        future = ask()
    except Exception as error:
        failed(error)
        return
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
