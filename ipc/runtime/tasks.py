"""Calls that are not answered at once: Deferreds, async handlers, streams and uploads, each known as in hand."""

from collections.abc import Callable
from typing import Any

import trio

from atoll.ipc import clock, context, errors
from atoll.ipc.context import Call
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, DeadlineExceeded, Overloaded, QuotaExceeded
from atoll.ipc.method import MethodSpec
from atoll.ipc.streams import RECORD_ITEMS
from atoll.native import Kind

from .inhand import Credit, InHand, Items, Origin
from .replies import Replies
from .shares import Shares

NANOSECONDS = 1_000_000_000
RECORD_BYTES = 8192
STREAM_TURN = 200_000
"""A plain generator runs for so many nanoseconds, or fills one record, before others have their turn."""


class Tasks:
    """`check` looks at a call's capability again: None, or why it is refused. `nursery` owns every handler's task."""

    def __init__(self, replies: Replies, check: Callable[[InHand], AtollError | None]) -> None:
        self.in_hand: dict[tuple[int, int], InHand] = {}
        self.nursery: trio.Nursery | None = None
        self._replies = replies
        self._check = check
        self.shares = Shares()

    def take(self, spec: MethodSpec, origin: Origin) -> InHand:
        """Put a call in hand. `Overloaded` or `QuotaExceeded` if its client has too many there, or this very request."""
        key = origin.channel, origin.request
        if key in self.in_hand:
            raise Overloaded(spec.label)
        inhand = InHand(spec, origin, self.shares.take(origin.channel, spec))
        self.in_hand[key] = inhand
        return inhand

    def done(self, inhand: InHand) -> bool:
        """Out of hand: False if it was already."""
        key = inhand.origin.channel, inhand.origin.request
        if self.in_hand.get(key) is not inhand:
            return False
        del self.in_hand[key]
        self.shares.give_back(inhand.client, inhand.spec)
        return True

    def finish(self, inhand: InHand, kind: int, payload: bytes) -> None:
        """Answer it, unless that was done or nobody hears it."""
        if self.done(inhand) and not inhand.unheard:
            self._replies.put(inhand.origin, kind, payload)

    def cancel(self, inhand: InHand) -> None:
        """The caller waits no more."""
        inhand.unheard = True
        inhand.cancel()
        if inhand.deferred:
            self.done(inhand)

    def of_channel(self, channel: int) -> list[InHand]:
        return [inhand for inhand in self.in_hand.values() if inhand.origin.channel == channel]

    def later(self, spec: MethodSpec, origin: Origin, result: Any, call: Call) -> None:
        """A handler returned something to wait for."""
        try:
            inhand = self.take(spec, origin)
        except (Overloaded, QuotaExceeded) as error:
            if hasattr(result, "close"):
                result.close()
            self._replies.put(origin, Kind.FAULT, errors.encode(error))
            return
        if isinstance(result, Deferred):
            inhand.deferred = True
            result.react(
                lambda data: self.finish(inhand, Kind.REPLY, data),
                lambda error: self.finish(inhand, Kind.FAULT, errors.encode(_told(inhand, error))),
            )
        else:
            self._start(self._stream if spec.kind == "stream" else self._reply, inhand, result, call)

    def upload(self, spec: MethodSpec, origin: Origin, run: Callable[[Items], Any], call: Call) -> None:
        """An upload begins: its handler takes items that are still to come."""
        inhand = self.take(spec, origin)
        inhand.items = Items(inhand, self._replies)
        try:
            work = run(inhand.items)
        except AtollError:
            self.done(inhand)
            raise
        self._start(self._reply, inhand, work, call)

    def _start(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any, call: Call) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._run, action, inhand, work, call)

    async def _run(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any, call: Call) -> None:
        """A handler's task: checked again first, ended by its deadline or its caller's cancellation."""
        origin = inhand.origin
        with context.in_hand(call), trio.CancelScope() as scope:
            inhand.scope = scope
            if origin.deadline:
                left = origin.deadline / NANOSECONDS - clock.monotonic()
                scope.deadline = trio.current_time() + max(0.0, left)
            if inhand.cancelled:
                scope.cancel()
            error = self._check(inhand)
            if error is not None:
                if hasattr(work, "close"):
                    work.close()
                self.finish(inhand, Kind.FAULT, errors.encode(error))
                return
            try:
                await action(inhand, work)
            except AtollError as problem:
                self.finish(inhand, Kind.FAULT, errors.encode(problem))
        if scope.cancelled_caught:
            self.finish(inhand, Kind.FAULT, errors.encode(_ended(inhand)))
        else:
            self.done(inhand)

    async def _reply(self, inhand: InHand, work: Any) -> None:
        self.finish(inhand, Kind.REPLY, await work)

    async def _stream(self, inhand: InHand, work: Any) -> None:
        inhand.credit = Credit(inhand.spec.label)
        if hasattr(work, "__anext__"):
            try:
                async for item in work:
                    await self._replies.items(inhand, [item])
            finally:
                with trio.CancelScope(shield=True):
                    await work.aclose()
        else:
            try:
                await self._pump(inhand, work)
            finally:
                work.close()
        self.finish(inhand, Kind.END, b"")

    async def _pump(self, inhand: InHand, work: Any) -> None:
        """A plain generator: its items fill records, and between two records others have their turn."""
        over = False
        while not over:
            items, size, end = [], 0, clock.monotonic_ns() + STREAM_TURN
            for item in work:
                items.append(item)
                size += len(item)
                if len(items) >= RECORD_ITEMS or size >= RECORD_BYTES or clock.monotonic_ns() >= end:
                    break
            else:
                over = True
            await self._replies.items(inhand, items)
            await trio.lowlevel.checkpoint()


def _ended(inhand: InHand) -> AtollError:
    """Why a handler's task was cancelled."""
    if inhand.moved:
        return errors.PeerDied(inhand.spec.label, True)
    if inhand.origin.deadline and clock.monotonic_ns() >= inhand.origin.deadline:
        return DeadlineExceeded(inhand.spec.label)
    return errors.Aborted(inhand.spec.label, "it was cancelled")


def _told(inhand: InHand, error: Exception) -> AtollError:
    if isinstance(error, AtollError):
        return error
    return errors.InternalFault(inhand.spec.label, type(error).__name__)


__all__ = ["Tasks"]
