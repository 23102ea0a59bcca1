"""A server process's receive loop: trio around the C loop of native/loop.c. (Raw cffi.)

One C call answers the last message, waits and hands out the next, so nothing is awaited for a plain handler: it runs
inline, right here. Everything that waits has a task in `nursery`: async handlers, streams, uploads. The loop gives trio
its turn when something is runnable there, when trio's epoll or deadline says so, and otherwise sleeps in C.

First step of every handler: has a revocation happened since the capability was checked? Then check again; and only then
leave the window between check and dispatch that `revoke` waits for.
"""

import math
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import trio

from atoll.ipc import context, errors
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.codec import LANES, Service
from atoll.ipc.context import INLINE, Call, Fields
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import (
    AtollError,
    BadRequest,
    DeadlineExceeded,
    NotAllowed,
    Overloaded,
    Revoked,
    TooLarge,
)
from atoll.ipc.serve import Endpoint, Entry
from atoll.ipc.system.control import OpenChannel
from atoll.native import Kind, Op, Refusal, Result, ffi, lib

from . import trio_inside
from .inhand import Credit, InHand, Items, Origin

NANOSECONDS = 1_000_000_000
VIEWS = 2049
IN_HAND_MOST = 4096
"""Calls in hand of one channel at most; more are `Overloaded`."""
RECORD_BYTES = 8192
RECORD_ITEMS = 64
STREAM_TURN = 200_000
"""A plain generator runs for so many nanoseconds, or fills one record, before others have their turn."""
RETRY = 0.0005
"""Seconds until a full reply ring is tried again."""

_SERVICES: dict[int, Service] = {0: "control", 1: "normal", 2: "bulk"}
_WHY = {
    Refusal.SLOT: "slot",
    Refusal.CHANNEL: "channel",
    Refusal.GENERATION: "generation",
    Refusal.RIGHTS: "rights",
    Refusal.EXPIRED: "expired",
    Refusal.METHOD: "method",
    Refusal.SERVICE: "rights",
}

_encode = msgspec.msgpack.Encoder().encode
_items = msgspec.msgpack.Decoder(list[bytes])
_credit = msgspec.msgpack.Decoder(int)


class Observer(Protocol):
    """Who is told of what a loop turned away."""

    def refused(self, channel: int, slot: int, method: int, why: str) -> None: ...
    def misbehaved(self, channel: int, check: str) -> None: ...


class ServeLoop:
    """Serves one endpoint on channels that come and go. `notice` and `status` are this process's segments.

    `rights`: per interface name the right names in bit order. Interfaces are numbered in the endpoint's order; so are the
    entries of the capability table.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        notice: mmap.mmap,
        status: mmap.mmap,
        rights: dict[str, tuple[str, ...]],
        observer: Observer,
        largest: int = 1 << 20,
    ) -> None:
        self.endpoint = endpoint
        self.observer = observer
        self.clients: dict[int, ClientChannel] = {}
        self.in_hand: dict[tuple[int, int], InHand] = {}
        self._notice, self._status = ffi.from_buffer(notice), ffi.from_buffer(status)
        self._notice_words = memoryview(notice).cast("Q")
        self._status_words = memoryview(status).cast("Q")
        self.c = lib.atoll_loop_new(self._notice, self._status, largest)
        if self.c == ffi.NULL:
            raise OSError(ffi.errno, "the receive loop could not be made")
        self._message = lib.atoll_loop_message(self.c)
        self._buffer = memoryview(ffi.buffer(lib.atoll_loop_buffer(self.c), largest))
        self._views = [self._buffer[:length] for length in range(VIEWS)]
        self._channels: dict[int, Any] = {}
        self._segments: list[Any] = []
        self._rights = [rights[interface.__name__] for interface in endpoint.interfaces]
        self._held: dict[tuple[int, int], frozenset[str]] = {}
        self._runs = [self._runner(index, entry) for index, entry in enumerate(endpoint.table)]
        self._overflow: dict[int, deque[tuple[int, int, int, bytes]]] = {}
        self._nursery: trio.Nursery | None = None
        self._idle: Callable[[], float | None] | None = getattr(endpoint.server, "idle", None)
        self._idle_due = math.inf
        self._draining = False
        self._stopping = False
        self._woken = trio.Event()
        self._seen = self._notice_words[1]
        """Revocations when the message in hand was checked: a later one has a task check again before its first step."""
        lib.atoll_loop_idle_wanted(self.c, self._idle is not None)
        self._register_methods()

    def _register_methods(self) -> None:
        for index, entry in enumerate(self.endpoint.table):
            interface = self.endpoint.interfaces.index(entry.interface)
            bit = self._rights[interface].index(entry.spec.right)
            lib.atoll_loop_method(self.c, interface, entry.spec.number, index, 1 << bit)

    # channels ---------------------------------------------------------------------------------------------------------

    def add(self, opened: OpenChannel, memory: int, doorbell: int) -> None:
        """Serve a channel. `memory` may be closed afterwards, `doorbell` stays open until `remove`."""
        shape = opened.shape
        geometry = (shape.lanes, shape.ring_bits, shape.bulk_bits, opened.epoch)
        if opened.positions:
            half = len(opened.positions) // 2
            consumed = ffi.new("uint64_t[]", list(opened.positions[:half]))
            produced = ffi.new("uint64_t[]", list(opened.positions[half:]))
            channel = lib.atoll_channel_resume(memory, doorbell, *geometry, consumed, produced)
        else:
            channel = lib.atoll_channel_open(memory, doorbell, 1, *geometry, opened.base, ffi.NULL)
        if channel == ffi.NULL:
            raise OSError(ffi.errno, f"channel {opened.channel} from {opened.peer}: its memory could not be mapped")
        problem = lib.atoll_loop_add(self.c, channel, opened.channel, 0)
        if problem:
            lib.atoll_channel_close(channel)
            raise OSError(
                problem, f"channel {opened.channel} from {opened.peer} could not be added to the loop"
            )
        self._channels[opened.channel] = channel

    def add_client(self, channel: ClientChannel) -> None:
        """Receive replies for a channel of which this process is the client."""
        channel.bound_to_loop = True
        problem = lib.atoll_loop_add(self.c, channel.c, channel.number, 1)
        if problem:
            raise OSError(
                problem, f"channel {channel.number} to {channel.peer} could not be added to the loop"
            )
        self.clients[channel.number] = channel

    def add_segment(self, index: int, segment: mmap.mmap) -> None:
        """A further segment of the capability table."""
        buffer = ffi.from_buffer(segment)
        self._segments.append((segment, buffer))
        problem = lib.atoll_loop_segment(self.c, index, buffer)
        if problem:
            raise OSError(problem, f"segment {index} of the capability table could not be added")

    def remove(self, number: int) -> None:
        """The kernel closed a channel: calls in hand from there are cancelled."""
        client = self.clients.pop(number, None)
        if client is not None:
            lib.atoll_loop_remove(self.c, number)
            client.fail(
                lambda label: errors.PeerDied(label, True), errors.PeerDied(f"a call to {client.peer}", False)
            )
            return
        channel = self._channels.pop(number, None)
        if channel is None:
            return
        lib.atoll_loop_remove(self.c, number)
        lib.atoll_channel_close(channel)
        self._overflow.pop(number, None)
        for inhand in [inhand for inhand in self.in_hand.values() if inhand.origin.channel == number]:
            self._cancel(inhand)
        gone = getattr(self.endpoint.server, "client_gone", None)
        if gone is not None:
            gone(number)

    def revive(self, number: int) -> None:
        """Look at a client's channel again: somebody else has received from it meanwhile."""
        lib.atoll_loop_hold(self.c, number, 0)

    def let_streams_go(self) -> None:
        """End streams that their clients can resume: they go on at whoever serves the channel next."""
        for inhand in list(self.in_hand.values()):
            if inhand.spec.kind == "stream" and inhand.spec.resume is not None:
                inhand.moved = True
                inhand.cancel()

    def cancel_calls(self, slot: int, generation: int) -> None:
        """Give up calls in hand under a capability that was revoked."""
        for inhand in list(self.in_hand.values()):
            if (inhand.origin.slot, inhand.origin.generation) == (slot, generation):
                inhand.cancel()

    def positions(self) -> dict[int, tuple[int, ...]]:
        """Per served channel: what was consumed of each lane's requests, then what was produced of its replies."""
        found = {}
        consumed, produced = ffi.new("uint64_t[3]"), ffi.new("uint64_t[3]")
        for number, channel in self._channels.items():
            lib.atoll_channel_positions(channel, consumed, produced)
            found[number] = (*consumed, *produced)
        return found

    def let_go(self) -> None:
        """After `positions` were handed over: the new process sleeps on the same words and listens to the same doorbells,
        so this one may neither write those nor take a ring off these."""
        for number in self._channels:
            lib.atoll_loop_remove(self.c, number)

    def take_back(self) -> None:
        """The swap was refused: serve the channels that were let go."""
        for number, channel in self._channels.items():
            lib.atoll_loop_add(self.c, channel, number, 0)  # EEXIST: it never was let go

    # life -------------------------------------------------------------------------------------------------------------

    def drain(self, draining: bool) -> None:
        """Take no further message (or take them again)."""
        self._draining = draining
        lib.atoll_loop_drain(self.c, draining)
        lib.atoll_loop_until(self.c, 1)

    def hold_idle(self, held: bool) -> None:
        """Do not call the server's `idle` (before its `start`), or call it again."""
        self._idle = None if held else getattr(self.endpoint.server, "idle", None)
        lib.atoll_loop_idle_wanted(self.c, self._idle is not None)

    def stop(self) -> None:
        """Leave `serve` at the next turn."""
        self._stopping = True
        lib.atoll_loop_until(self.c, 1)

    async def settled(self) -> None:
        """Until no call is in hand and every reply is in its ring."""
        while self.in_hand or self._overflow:
            await trio.sleep(RETRY)

    def pending(self) -> list[str]:
        """Names of the methods of the calls in hand, one a call."""
        return [inhand.spec.label for inhand in self.in_hand.values()]

    def busy(self) -> str:
        """The method whose plain handler runs now; empty if none does."""
        index = self._status_words[9]
        return self.endpoint.table[index - 1].spec.label if 0 < index <= len(self.endpoint.table) else ""

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`."""
        descriptor = trio_inside.descriptor()
        if descriptor is not None:
            lib.atoll_loop_watch(self.c, descriptor)
        runnable = trio_inside.Runnable(lambda: lib.atoll_loop_until(self.c, 1))
        trio.lowlevel.add_instrument(runnable)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await self._serve(runnable, descriptor is not None)
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(runnable)
            INLINE.read = None

    async def _serve(self, runnable: trio_inside.Runnable, parks: bool) -> None:
        receive, loop, runs, views = lib.atoll_loop_next, self.c, self._runs, self._views
        notice, status, inline = self._notice_words, self._status_words, INLINE
        replied, cast = Kind.REPLY << 32, int(Op.CAST)
        fault_of, failed = errors.encode, Kind.FAULT << 32
        inline.thread = threading.get_ident()
        reply, packed, seen = b"", 0, self._seen
        inline.read = self._fields
        while True:
            received = receive(loop, reply, packed)
            op = received >> 56
            if op <= cast:  # CALL or CAST
                length = received & 0xFFFFFFFF
                inline.call = None
                if notice[1] != seen:
                    seen = self._seen = notice[1]
                    refusal = lib.atoll_loop_recheck(loop, self._message)
                    if refusal:
                        reply, packed = self._refuse(refusal)
                        continue
                status[0] = 0
                try:
                    result = runs[(received >> 32) & 0xFFFFFF](
                        views[length] if length < VIEWS else self._buffer[:length]
                    )
                except AtollError as error:
                    reply = fault_of(error)
                    packed = failed | len(reply)
                    continue
                if result.__class__ is bytes:
                    reply = result
                    packed = replied | len(reply)
                else:
                    reply, packed = b"", 0
                    if result is not None:
                        self._later(received >> 32 & 0xFFFFFF, result, op == cast)
                continue
            reply, packed = await self._other(op, received, reply, packed, runnable, parks)
            if self._stopping and op == Op.EXTERNAL:
                lib.atoll_loop_flush(loop)
                return

    async def _other(
        self, op: int, received: int, reply: bytes, packed: int, runnable: trio_inside.Runnable, parks: bool
    ) -> tuple[bytes, int]:
        """Everything that is not a call to dispatch; gives what to reply with."""
        index = received >> 32 & 0xFFFFFF
        match op:
            case Op.EXTERNAL:
                await self._turn(runnable, parks)
            case Op.CLIENT:
                self.clients[index].look()
            case Op.STREAM:
                self._stream(received & 0xFFFFFFFF)
            case Op.IDLE:
                self._run_idle()
            case Op.REFUSED:
                return self._refuse(index)
            case Op.LATE:
                return self._fault(DeadlineExceeded(self.endpoint.table[index].spec.label))
            case Op.MISBEHAVED:
                self._misbehaved(index)
            case Op.FULL:
                message = self._message
                self._keep(index, message.request, message.lane, packed >> 32, reply)
            case Op.LARGE:
                return self._fault(TooLarge("a reply", len(reply), self._buffer.nbytes))
            case Op.GATED:
                await self._gated()
        return b"", 0

    async def _turn(self, runnable: trio_inside.Runnable, parks: bool) -> None:
        """trio's turn; then say until when the C loop may wait."""
        INLINE.read = None
        self._flush_overflow()
        if time.monotonic() >= self._idle_due:
            self._run_idle()
        await trio.lowlevel.checkpoint()
        INLINE.read = self._fields
        self._wait_until(runnable, parks)

    def _wait_until(self, runnable: trio_inside.Runnable, parks: bool) -> None:
        if runnable.any or self._stopping:
            lib.atoll_loop_until(self.c, 1)
            return
        wait = min(trio_inside.seconds_to_deadline(), self._idle_due - time.monotonic())
        if self._overflow:
            wait = min(wait, RETRY)
        if not parks:
            wait = min(wait, 0.002)
        until = 0 if wait == math.inf else max(2, time.monotonic_ns() + int(wait * NANOSECONDS))
        lib.atoll_loop_until(self.c, until)

    async def _gated(self) -> None:
        """The kernel is about to freeze us, or has just thawed us: nothing is taken meanwhile."""
        INLINE.read = None
        await trio.sleep(0.001)
        INLINE.read = self._fields

    def _run_idle(self) -> None:
        if self._idle is None:
            return
        wait = self._idle()
        self._idle_due = math.inf if wait is None else time.monotonic() + wait
        if wait is not None:
            lib.atoll_loop_until(self.c, max(2, time.monotonic_ns() + int(wait * NANOSECONDS)))

    # one call ---------------------------------------------------------------------------------------------------------

    def _runner(self, index: int, entry: Entry) -> Callable[[memoryview], object]:
        if entry.spec.kind == "upload":
            return lambda view: self._start_upload(index, entry, view)
        return entry.run

    def _fields(self) -> Fields:
        """The call in hand, out of the C core's memory: only for handlers that ask."""
        message = self._message
        entry = self.endpoint.table[message.needed]
        return Fields(
            method=entry.spec.label,
            badge=message.badge,
            rights=self._rights_of(message.interface, message.rights),
            service=_SERVICES[message.lane],
            deadline=message.deadline / NANOSECONDS if message.deadline else None,
            trace=message.trace or (message.channel << 40 | message.request),
            transaction=bytes(ffi.buffer(message.context, 16)) if message.flags & 2 else None,
            client=message.channel,
            request=message.request,
        )

    def _rights_of(self, interface: int, bits: int) -> frozenset[str]:
        held = self._held.get((interface, bits))
        if held is None:
            names = self._rights[interface]
            held = frozenset(name for bit, name in enumerate(names) if bits >> bit & 1)
            self._held[interface, bits] = held
        return held

    def _origin(self, cast: bool) -> Origin:
        message = self._message
        return Origin(
            message.channel,
            message.request,
            message.lane,
            cast,
            message.slot,
            message.generation,
            message.rights,
            message.deadline,
            self._seen,
        )

    def _take(self, index: int, cast: bool) -> InHand:
        """Put the message's call in hand. `Overloaded` if too many are."""
        origin = self._origin(cast)
        if len(self.in_hand) >= IN_HAND_MOST:
            raise Overloaded(self.endpoint.table[index].spec.label)
        inhand = InHand(self.endpoint.table[index].spec, origin)
        self.in_hand[origin.channel, origin.request] = inhand
        return inhand

    def _cancel(self, inhand: InHand) -> None:
        """The caller waits no more."""
        inhand.cancel()
        if inhand.deferred:
            self._done(inhand)

    def _done(self, inhand: InHand) -> None:
        self.in_hand.pop((inhand.origin.channel, inhand.origin.request), None)

    def _later(self, index: int, result: Any, cast: bool) -> None:
        """A handler returned something to wait for."""
        try:
            inhand = self._take(index, cast)
        except Overloaded as error:
            if hasattr(result, "close"):
                result.close()
            if not cast:
                self._reply(self._origin(cast), Kind.FAULT, errors.encode(error))
            return
        if isinstance(result, Deferred):
            inhand.deferred = True
            result.react(
                lambda data: self._finish(inhand, Kind.REPLY, data),
                lambda error: self._finish(inhand, Kind.FAULT, errors.encode(_told(inhand, error))),
            )
            return
        assert self._nursery is not None
        action = self._run_stream if inhand.spec.kind == "stream" else self._run_async
        call = Call(self._fields(), INLINE.clock)
        self._nursery.start_soon(self._run, action, inhand, result, call)

    def _start_upload(self, index: int, entry: Entry, view: memoryview) -> None:
        inhand = self._take(index, False)
        inhand.items = Items(inhand, self)
        coroutine = entry.run(view, inhand.items)
        call = Call(self._fields(), INLINE.clock)
        assert self._nursery is not None
        self._nursery.start_soon(self._run, self._run_async, inhand, coroutine, call)

    async def _run(self, action: Callable[[InHand, Any], Any], inhand: InHand, work: Any, call: Call) -> None:
        """A handler's task: checked again first, ended by its deadline or its caller's cancellation."""
        origin = inhand.origin
        with context.in_hand(call), trio.CancelScope() as scope:
            inhand.scope = scope
            if origin.deadline:
                scope.deadline = trio.current_time() + max(
                    0.0, origin.deadline / NANOSECONDS - time.monotonic()
                )
            if inhand.cancelled:
                scope.cancel()
            error = self._recheck(origin, inhand)
            if error is not None:
                if hasattr(work, "close"):
                    work.close()
                self._finish(inhand, Kind.FAULT, errors.encode(error))
                return
            try:
                await action(inhand, work)
            except AtollError as problem:
                self._finish(inhand, Kind.FAULT, errors.encode(problem))
        if scope.cancelled_caught:
            late = origin.deadline and time.monotonic_ns() >= origin.deadline
            ended: AtollError = errors.Aborted(inhand.spec.label, "it was cancelled")
            if inhand.moved:
                ended = errors.PeerDied(inhand.spec.label, True)
            elif late:
                ended = DeadlineExceeded(inhand.spec.label)
            self._finish(inhand, Kind.FAULT, errors.encode(ended))
        else:
            self._done(inhand)

    def _recheck(self, origin: Origin, inhand: InHand) -> AtollError | None:
        """The second look at the capability, after the time in trio's queue."""
        if self._notice_words[1] == origin.revocations:
            return None
        message = ffi.new(
            "atoll_message *",
            {
                "channel": origin.channel,
                "slot": origin.slot,
                "generation": origin.generation,
                "rights": origin.rights,
            },
        )
        refusal = lib.atoll_loop_recheck(self.c, message)
        self._status_words[0] = 0
        if not refusal:
            return None
        self.observer.refused(origin.channel, origin.slot, inhand.spec.number, _WHY[Refusal(refusal)])
        return Revoked(inhand.spec.label)

    async def _run_async(self, inhand: InHand, work: Any) -> None:
        self._finish(inhand, Kind.REPLY, await work)

    async def _run_stream(self, inhand: InHand, work: Any) -> None:
        inhand.credit = Credit()
        if hasattr(work, "__anext__"):
            try:
                async for item in work:
                    await self._send_items(inhand, [item])
            finally:
                with trio.CancelScope(shield=True):
                    await work.aclose()
        else:
            try:
                await self._pump(inhand, inhand.credit, work)
            finally:
                work.close()
        self._finish(inhand, Kind.END, b"")

    async def _pump(self, inhand: InHand, credit: Credit, work: Any) -> None:
        """A plain generator: its items fill records, and between two records others have their turn."""
        over = False
        while not over:
            await credit.wait()
            items, size, end = [], 0, time.monotonic_ns() + STREAM_TURN
            limit = min(credit.left, RECORD_ITEMS)
            for item in work:
                items.append(item)
                size += len(item)
                if len(items) >= limit or size >= RECORD_BYTES or time.monotonic_ns() >= end:
                    break
            else:
                over = True
            if items:
                await self._send_items(inhand, items)
            await trio.lowlevel.checkpoint()

    async def _send_items(self, inhand: InHand, items: list[bytes]) -> None:
        credit = inhand.credit
        assert credit is not None
        await credit.wait()
        credit.left -= len(items)
        payload = _encode(items)
        origin = inhand.origin
        while True:
            result = lib.atoll_loop_reply(
                self.c, origin.channel, origin.request, origin.lane, int(Kind.ITEM), payload, len(payload)
            )
            if result == Result.FULL or origin.channel in self._overflow:
                lib.atoll_loop_flush(self.c)
                await trio.sleep(RETRY)
                continue
            if result == Result.TOO_LARGE:
                raise TooLarge(f"an item of {inhand.spec.label}", len(payload), self._buffer.nbytes)
            if result < 0:
                inhand.cancel()
            return

    # replies ----------------------------------------------------------------------------------------------------------

    def _fault(self, error: AtollError) -> tuple[bytes, int]:
        reply = errors.encode(error)
        return reply, Kind.FAULT << 32 | len(reply)

    def _finish(self, inhand: InHand, kind: Kind, payload: bytes) -> None:
        key = inhand.origin.channel, inhand.origin.request
        if self.in_hand.pop(key, None) is not None and not inhand.origin.cast:
            self._reply(inhand.origin, kind, payload)

    def _reply(self, origin: Origin, kind: Kind, payload: bytes) -> None:
        """Put a reply into its ring, or keep it until there is room."""
        if origin.cast or origin.channel not in self._channels:
            return
        if origin.channel in self._overflow:
            self._keep(origin.channel, origin.request, origin.lane, kind, payload)
            return
        result = lib.atoll_loop_reply(
            self.c, origin.channel, origin.request, origin.lane, int(kind), payload, len(payload)
        )
        if result == Result.FULL:
            self._keep(origin.channel, origin.request, origin.lane, kind, payload)
        elif result == Result.TOO_LARGE:
            fault = errors.encode(TooLarge("a reply", len(payload), self._buffer.nbytes))
            self._reply(origin, Kind.FAULT, fault)
        elif result == Result.MISBEHAVED:
            self._misbehaved(origin.channel)

    def _keep(self, channel: int, request: int, lane: int, kind: int, payload: bytes) -> None:
        """The reply ring is full: take nothing from this client until it has taken its replies."""
        self._overflow.setdefault(channel, deque()).append((request, lane, int(kind), payload))
        lib.atoll_loop_hold(self.c, channel, 1)
        lib.atoll_loop_until(self.c, max(2, time.monotonic_ns() + int(RETRY * NANOSECONDS)))

    def _flush_overflow(self) -> None:
        for channel, queue in list(self._overflow.items()):
            while queue:
                request, lane, kind, payload = queue[0]
                result = lib.atoll_loop_reply(self.c, channel, request, lane, kind, payload, len(payload))
                if result == Result.FULL:
                    break
                queue.popleft()
                if result == Result.MISBEHAVED:
                    self._misbehaved(channel)
                    break
            if not queue:
                self._overflow.pop(channel, None)
                lib.atoll_loop_hold(self.c, channel, 0)

    # refusals and streams ---------------------------------------------------------------------------------------------

    def _refuse(self, refusal: int) -> tuple[bytes, int]:
        message = self._message
        why = Refusal(refusal)
        self.observer.refused(message.channel, message.slot, message.method, _WHY[why])
        entry = self.endpoint.by_number.get(message.method)
        label = entry.spec.label if entry is not None else f"method {message.method:#010x}"
        error: AtollError
        if why == Refusal.RIGHTS and entry is not None:
            held = self._rights_of(message.interface, message.rights)
            error = NotAllowed(label, entry.spec.right, tuple(sorted(held)))
        elif why == Refusal.METHOD:
            error = BadRequest(
                f"a call of {label}", "a method of the capability's interface", "one that it does not have"
            )
        elif why == Refusal.SERVICE:
            error = BadRequest(
                f"a call of {label}", "a class of service that the capability allows", "a better one"
            )
        else:
            error = Revoked(label)
        return self._fault(error)

    def _misbehaved(self, channel: int) -> None:
        fault = lib.atoll_channel_fault(self._channels[channel]) if channel in self._channels else ffi.NULL
        self._bad(channel, ffi.string(fault).decode() if fault != ffi.NULL else "unknown check")

    def _bad(self, channel: int, check: str) -> None:
        self.observer.misbehaved(channel, check)
        self.remove(channel)

    def _stream(self, length: int) -> None:
        """A record that belongs to a call in hand; one that is over is no fault: both sides may end it."""
        message = self._message
        inhand = self.in_hand.get((message.channel, message.request))
        if inhand is None:
            return
        channel, payload = message.channel, self._buffer[:length]
        try:
            match message.kind:
                case Kind.CANCEL:
                    self._cancel(inhand)
                case Kind.END if inhand.items is not None:
                    inhand.items.ended()
                case Kind.ITEM if inhand.items is not None:
                    if not inhand.items.arrived(_items.decode(payload)):
                        self._bad(channel, "upload without credit")
                case Kind.CREDIT if inhand.spec.kind == "stream":
                    if inhand.credit is not None:
                        inhand.credit.add(_credit.decode(payload))
                case _:
                    self._bad(channel, "record of no stream")
        except msgspec.DecodeError:
            self._bad(channel, "stream record")

    def grant(self, inhand: InHand, count: int) -> None:
        """See `Grantor`."""
        self._reply(inhand.origin, Kind.CREDIT, _encode(count))


def _told(inhand: InHand, error: Exception) -> AtollError:
    return (
        error
        if isinstance(error, AtollError)
        else errors.InternalFault(inhand.spec.label, type(error).__name__)
    )


__all__ = ["LANES", "Observer", "ServeLoop"]
