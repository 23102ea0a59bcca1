"""Calls that are not answered at once: Deferreds, async handlers, streams and uploads, each known as in hand.

An async handler begins at once, in the place of a parked task (a *stand-in*): if it is over without having waited, it has
cost no task and no turn of trio's. Else the stand-in goes on with it, and is parked again after it.
"""

import contextvars
import math
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from atoll.ipc import clock, context, errors
from atoll.ipc.context import Call
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, DeadlineExceeded, Overloaded, QuotaExceeded
from atoll.ipc.method import MethodSpec
from atoll.ipc.streams import RECORD_ITEMS
from atoll.native import Kind

from . import trio_inside
from .inhand import Credit, InHand, Items, Origin
from .replies import Replies
from .shares import Shares

NANOSECONDS = 1_000_000_000
RECORD_BYTES = 8192
STAND_INS = 64
"""Tasks that are kept parked at most."""
STREAM_TURN = 200_000
"""A plain generator runs for so many nanoseconds, or fills one record, before others have their turn."""


class StandIn:
    """A task that answers one call after the other, parked in between. `scope` is around all that it does."""

    __slots__ = ("_parked", "scope", "task")

    def __init__(self, scope: trio.CancelScope, parked: "list[StandIn]") -> None:
        self.task = trio.lowlevel.current_task()
        self.scope = scope
        self._parked = parked

    async def park(self) -> tuple[InHand, Any]:
        """Until a call is handed over: the call and the rest of its handler."""
        self._parked.append(self)
        inhand, work, trap = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return inhand, trio_inside.the_rest(work, trap)

    def back(self) -> None:
        """Taken out of the parked ones, and not needed."""
        self._parked.append(self)
        trio_inside.still_parked(self.task, self._abort)

    def _abort(self, _: Any) -> trio.lowlevel.Abort:
        """Cancelled. While a handler runs in its place, that has to come to an end, or to wait, first."""
        if self not in self._parked:
            return trio.lowlevel.Abort.FAILED
        self._parked.remove(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Tasks:
    """`check` looks at a call's capability again: None, or why it is refused. `nursery` owns every handler's task."""

    def __init__(self, replies: Replies, check: Callable[[InHand], AtollError | None]) -> None:
        self.in_hand: dict[tuple[int, int], InHand] = {}
        self.nursery: trio.Nursery | None = None
        self._parked: list[StandIn] = []
        self._outside = contextvars.Context()
        """What handlers see of context variables."""
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
        inhand.scope = None  # it may be a stand-in's, which goes on with others
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
        if spec.kind == "stream":
            inhand.credit = Credit(spec.label)
        self._start(self._stream if spec.kind == "stream" else self._reply, inhand, result, call)

    def defer(self, spec: MethodSpec, origin: Origin, result: Deferred[bytes]) -> None:
        """A handler returned a Deferred."""
        try:
            inhand = self.take(spec, origin)
        except (Overloaded, QuotaExceeded) as error:
            self._replies.put(origin, Kind.FAULT, errors.encode(error))
            return
        inhand.deferred = True
        result.react(
            lambda data: self.finish(inhand, Kind.REPLY, data),
            lambda error: self.finish(inhand, Kind.FAULT, errors.encode(_told(inhand, error))),
        )

    def begin(
        self, spec: MethodSpec, origin: Callable[[], Origin], work: Coroutine[Any, Any, bytes], call: Call
    ) -> bytes | None:
        """An async handler: its first step. Gives its reply, if it is over then, and raises what it raises; else it is in
        hand. `origin` is asked for only then. The call must not be in hand already (`may_begin`)."""
        stand_in = self._parked.pop()
        within = self._outside.copy()
        within.run(context.enter, call)
        try:
            trap = trio_inside.begin(stand_in.task, within, work)
        except StopIteration as over:
            stand_in.back()
            reply: bytes = over.value
            return reply
        except BaseException:
            stand_in.back()
            raise
        inhand = self.take(spec, origin())
        inhand.scope = stand_in.scope
        _bound(inhand.scope, inhand.origin.deadline)
        trio_inside.go_on(stand_in.task, (inhand, work, trap))
        return None

    def may_begin(self, channel: int, request: int) -> bool:
        """Whether a call can begin at once: there is a stand-in, and this very request is not in hand."""
        return bool(self._parked) and (channel, request) not in self.in_hand

    def opened(self, nursery: trio.Nursery) -> None:
        """Handlers' tasks are this nursery's, and see the context variables of now."""
        self.nursery = nursery
        self._outside = contextvars.copy_context()

    def upload(self, spec: MethodSpec, origin: Origin, run: Callable[[Items], Any], call: Call) -> None:
        """An upload begins: its handler takes items that are still to come."""
        inhand = self.take(spec, origin)
        inhand.items = Items(inhand, self._replies)
        try:
            work = run(inhand.items)
        except BaseException:  # of whatever its arguments raise
            self.done(inhand)
            raise
        self._start(self._reply, inhand, work, call)

    def _start(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any, call: Call) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._run, action, inhand, work, call)

    async def _run(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any, call: Call) -> None:
        """A handler's task: checked again first, ended by its deadline or its caller's cancellation. Then it stands in for
        others, if there are not enough."""
        with trio.CancelScope() as scope:
            inhand.scope = scope
            if inhand.cancelled:
                scope.cancel()
            # Cannot be spared: another look at its capability, `self._check(inhand)`.
            error = self._check(inhand)
            if error is not None:
                if hasattr(work, "close"):
                    work.close()
                self.finish(inhand, Kind.FAULT, errors.encode(error))
            else:
                _bound(scope, inhand.origin.deadline)
                with context.in_hand(call):
                    await self._answer(action, inhand, work)
            stand_in = StandIn(scope, self._parked)
            while trio_inside.STEPS and len(self._parked) < STAND_INS:
                scope.deadline = math.inf
                inhand, work = await stand_in.park()
                await self._answer(self._reply, inhand, work)
        if scope.cancelled_caught:
            self.finish(inhand, Kind.FAULT, errors.encode(_ended(inhand)))

    async def _answer(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any) -> None:
        try:
            await action(inhand, work)
        except AtollError as problem:
            self.finish(inhand, Kind.FAULT, errors.encode(problem))
        self.done(inhand)

    async def _reply(self, inhand: InHand, work: Any) -> None:
        self.finish(inhand, Kind.REPLY, await work)

    async def _stream(self, inhand: InHand, work: Any) -> None:
        if hasattr(work, "__anext__"):
            try:
                async for item in work:
                    if not self._replies.item(inhand, item):
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
        over, failure = False, None
        while not over:
            items, size, end = [], 0, clock.monotonic_ns() + STREAM_TURN
            try:
                for item in work:
                    items.append(item)
                    size += len(item)
                    if len(items) >= RECORD_ITEMS or size >= RECORD_BYTES or clock.monotonic_ns() >= end:
                        break
                else:
                    over = True
            except AtollError as error:  # told behind what came before it
                over, failure = True, error
            await self._replies.items(inhand, items)
            await trio.lowlevel.checkpoint()
        if failure is not None:
            raise failure


def _bound(scope: trio.CancelScope, deadline: int) -> None:
    """End what runs in the scope by a deadline (ns of CLOCK_MONOTONIC; 0: none)."""
    if deadline:
        # Looked at before trio's clock: who loses the core in between ends it late. Early, it would not know why.
        left = max(0.0, deadline / NANOSECONDS - clock.monotonic())
        scope.deadline = trio.current_time() + left


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
