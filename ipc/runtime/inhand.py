"""Calls in hand: begun, and not yet answered. What `drain` waits for, `cancel` ends and overload is measured by."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import trio

from atoll.ipc.errors import AtollError
from atoll.ipc.method import MethodSpec
from atoll.ipc.streams import Receiver, Sender, cost
from atoll.native import Kind, ffi

from .shares import Client

CONTEXT = 2
"""FLAG_CONTEXT of layout.h: a context block came with the message."""
_ID = 16


class Origin:
    """Where a call came from: what its reply needs, and what a second check of its capability needs."""

    __slots__ = (
        "cast",
        "channel",
        "deadline",
        "generation",
        "lane",
        "request",
        "rights",
        "slot",
    )

    def __init__(self, message: Any) -> None:
        """Of the message that the C core has handed out last."""
        self.channel: int = message.channel
        self.request: int = message.request
        self.lane: int = message.lane
        self.cast: bool = message.kind == Kind.CAST
        self.slot: int = message.slot
        self.generation: int = message.generation
        self.rights: int = message.rights
        self.deadline: int = message.deadline


def carried(message: Any) -> dict[str, bytes | None]:
    """What a message's context block names: fields of `context.Fields`. All zero: not there."""
    if not message.flags & CONTEXT:
        return {}
    named = bytes(ffi.buffer(message.context, 2 * _ID))
    transaction, key = named[:_ID], named[_ID:]
    return {"transaction": transaction if any(transaction) else None, "key": key if any(key) else None}


class InHand:
    """One call in hand. `scope` cancels its task; `items` and `credit` are those of an upload or a stream."""

    __slots__ = (
        "cancelled",
        "client",
        "credit",
        "deferred",
        "items",
        "moved",
        "origin",
        "scope",
        "spec",
        "unheard",
    )

    def __init__(self, spec: MethodSpec, origin: Origin, client: Client) -> None:
        self.spec = spec
        self.origin = origin
        self.client = client
        self.scope: trio.CancelScope | None = None
        self.items: Items | None = None
        self.credit: Credit | None = None
        self.cancelled = False
        self.unheard = False
        """Its caller said that it waits no more: an answer would only take room."""
        self.moved = False
        """A stream that its client opens again where it stopped: at the next version, or here after all."""
        self.deferred = False
        """A `Deferred` answers it: there is no task, and once its caller is gone nothing is left to wait for."""

    def cancel(self) -> None:
        """End its task, now or as soon as it begins."""
        self.cancelled = True
        if self.scope is not None:
            self.scope.cancel()


class Credit(Sender):
    """What a stream may still send."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._more = trio.Event()

    def grant(self, limit: int) -> None:
        super().grant(limit)
        self._more.set()

    async def wait(self, items: list[bytes]) -> tuple[int, int]:
        """Until there is some for the first of these items; what it affords then."""
        while not (afforded := self.affords(items))[0]:
            self._more = trio.Event()
            await self._more.wait()
        return afforded


class Grantor(Protocol):
    def grant(self, inhand: InHand, limit: int) -> None:
        """Tell the client how far it may send."""
        ...


class Items:
    """The encoded items of an upload, as its handler takes them."""

    def __init__(self, inhand: InHand, grantor: Grantor) -> None:
        self._inhand = inhand
        self._grantor = grantor
        self._receiver = Receiver(inhand.spec.label)
        self._queue: deque[tuple[bytes, int]] = deque()
        """Each with what it costs."""
        self._change = trio.Event()
        self._over = False
        self._error: AtollError | None = None

    def arrived(self, items: list[bytes]) -> None:
        """`PeerMisbehaved` if the client sent more than it had credit for."""
        priced = [(item, cost(item)) for item in items]
        self._receiver.arrive(sum([price for _, price in priced]))
        self._queue.extend(priced)
        self._change.set()

    def ended(self, error: AtollError | None = None) -> None:
        self._over = True
        self._error = error
        self._change.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._change = trio.Event()
            await self._change.wait()
        item, price = self._queue.popleft()
        limit = self._receiver.take(price)
        if limit is not None:
            self._grantor.grant(self._inhand, limit)
        return item
