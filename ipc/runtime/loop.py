"""A server process's receive loop: trio around the C loop of native/loop.c. (Raw cffi.)

One C call answers the last message, waits and hands out the next, so nothing is awaited for a plain handler: it runs
inline, right here. Everything that waits has a task in `nursery`: async handlers, streams, uploads. The loop gives trio
its turn when something is runnable there, when trio's epoll or deadline says so, and otherwise sleeps in C; or in trio,
where trio's epoll is not to be had (another trio, a simulation).

First step of every handler: has a revocation happened since the capability was checked? Then check again; and only then
leave the window between check and dispatch that `revoke` waits for.
"""

import math
import mmap
import threading
from collections.abc import Callable
from functools import partial
from types import CoroutineType
from typing import Any, NoReturn, Protocol

import msgspec
import trio

from atoll.ipc import clock, errors
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.context import INLINE, Call, Fields, trace_of
from atoll.ipc.deferred import Deferred
from atoll.ipc.dispatch import internal
from atoll.ipc.errors import (
    AtollError,
    DeadlineExceeded,
    DecodeFaults,
    PeerMisbehaved,
    QuotaExceeded,
    Revoked,
    TooLarge,
)
from atoll.ipc.limits import MAX_PAYLOAD
from atoll.ipc.method import LANES, Service
from atoll.ipc.serve import Endpoint, Entry
from atoll.ipc.system.control import OpenChannel
from atoll.ipc.views import Views
from atoll.native import SHORT_BITS, Kind, Op, Refusal, ffi, lib

from . import trio_inside
from .inhand import InHand, Origin, carried
from .refusals import WHY, error_of, refuses
from .replies import Replies
from .tasks import Tasks

NANOSECONDS = 1_000_000_000
SHORT_MOST = (1 << SHORT_BITS) - 1
"""Bytes of the longest call that comes in one small number."""
SHORT_CALLS = 1 << 24 + SHORT_BITS
LENGTH, INDEX = 0xFFFFFFFF, 0xFFFFFF

_SERVICES: dict[int, Service] = {0: "control", 1: "normal", 2: "bulk"}

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
        self._notice, self._status = ffi.from_buffer(notice), ffi.from_buffer(status)
        self._notice_words = memoryview(notice).cast("Q")
        self._status_words = memoryview(status).cast("Q")
        self.c = lib.atoll_loop_new(self._notice, self._status, largest)
        if self.c == ffi.NULL:
            raise OSError(ffi.errno, "the receive loop could not be made")
        self._message = lib.atoll_loop_message(self.c)
        self._buffer = memoryview(ffi.buffer(lib.atoll_loop_buffer(self.c), largest))
        self._views = Views(self._buffer, SHORT_MOST + 1)
        self._channels: dict[int, Any] = {}
        self._segments: list[Any] = []
        self.rights = [rights[interface.__name__] for interface in endpoint.interfaces]
        self._held: dict[tuple[int, int], frozenset[str]] = {}
        self._runs = [self._runner(entry) for entry in endpoint.table]
        self._replies = Replies(self.c, self._channels, self._misbehaved)
        self._tasks = Tasks(self._replies, self._recheck)
        self._idle: Callable[[], float | None] | None = getattr(endpoint.server, "idle", None)
        self._idle_due = math.inf
        self._outside = -1
        self._sleep: trio.CancelScope | None = None
        """Where the loop sleeps in trio, and does so now."""
        self._draining = self._stopping = False
        self._roomless = False
        """The tape has no room for a call."""
        self._runnable = trio_inside.Runnable(self._stir)
        self._knows_clients = False
        self._again = ffi.new("atoll_message *")
        self.tape: Callable[[int], None] = lambda due: None
        lib.atoll_loop_idle_wanted(self.c, self._idle is not None)
        self._register_methods()

    def _register_methods(self) -> None:
        for index, entry in enumerate(self.endpoint.table):
            interface = self.endpoint.interfaces.index(entry.interface)
            bit = self.rights[interface].index(entry.spec.right)
            lib.atoll_loop_method(self.c, interface, entry.spec.number, index, 1 << bit, entry.spec.local)

    # channels ---------------------------------------------------------------------------------------------------------

    def add(self, opened: OpenChannel, memory: int, doorbell: int) -> None:
        """Serve a channel. `memory` may be closed afterwards, `doorbell` stays open until `remove`."""
        shape = opened.shape
        geometry = (shape.lanes, shape.ring_bits, shape.bulk_bits, opened.epoch)
        if opened.positions:
            if len(opened.positions) != 2 * len(LANES):
                raise ValueError(
                    f"channel {opened.channel} from {opened.peer}: {len(opened.positions)} positions"
                )
            consumed = ffi.new("uint64_t[3]", list(opened.positions[: len(LANES)]))
            produced = ffi.new("uint64_t[3]", list(opened.positions[len(LANES) :]))
            channel = lib.atoll_channel_resume(memory, doorbell, *geometry, consumed, produced)
        else:
            channel = lib.atoll_channel_open(memory, doorbell, 1, *geometry, opened.base, ffi.NULL)
        if channel == ffi.NULL:
            raise OSError(
                ffi.errno, f"channel {opened.channel} from {opened.peer}: its memory could not be mapped"
            )
        problem = lib.atoll_loop_add(self.c, channel, opened.channel, 0)
        if problem:
            lib.atoll_channel_close(channel)
            raise OSError(problem, f"channel {opened.channel} from {opened.peer} was not added to the loop")
        self._channels[opened.channel] = channel
        self._tasks.shares.admit(opened.channel, opened.account, opened.pending)

    def add_client(self, channel: ClientChannel) -> None:
        """Receive replies for a channel of which this process is the client."""
        channel.bound_to_loop = True
        problem = lib.atoll_loop_add(self.c, channel.c, channel.number, 1)
        if problem:
            raise OSError(problem, f"channel {channel.number} to {channel.peer} was not added to the loop")
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
            client.bereave()
            return
        channel = self._channels.pop(number, None)
        if channel is None:
            return
        lib.atoll_loop_remove(self.c, number)
        lib.atoll_channel_close(channel)
        self._replies.forget(number)
        self._tasks.shares.forget(number)
        for inhand in self._tasks.of_channel(number):
            self._tasks.cancel(inhand)
        gone = getattr(self.endpoint.server, "client_gone", None)
        if gone is not None and self._knows_clients:
            self._for_no_call(partial(gone, number))

    def tell_clients(self) -> None:
        """Tell the server who is there, before its first call: it may know of others. From now on it is told who goes."""
        self._knows_clients = True
        present = getattr(self.endpoint.server, "clients_present", None)
        if present is not None:
            present(frozenset(self._channels))

    def revive(self, number: int) -> None:
        """Look at a client's channel again: somebody else has received from it meanwhile."""
        lib.atoll_loop_hold(self.c, number, 0)

    def let_streams_go(self) -> None:
        """End streams that their clients can resume: they go on at whoever serves the channel next."""
        for inhand in list(self._tasks.in_hand.values()):
            if inhand.spec.kind == "stream" and inhand.spec.resume is not None:
                inhand.moved = True
                inhand.cancel()

    def cancel_calls(self, slot: int, generation: int) -> None:
        """Give up calls in hand under a capability that was revoked."""
        for inhand in list(self._tasks.in_hand.values()):
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
        self._bar()
        lib.atoll_loop_until(self.c, 1)

    def room(self, there_is: bool) -> None:
        """On the tape of its calls: without it none is taken. With it, replies that waited are sent."""
        self._roomless = not there_is
        self._bar()
        self._replies.flush()

    def _bar(self) -> None:
        """No call is taken during a drain, nor while the tape has no room for one."""
        lib.atoll_loop_drain(self.c, self._draining or self._roomless)

    def hold_idle(self, held: bool) -> None:
        """Do not call the server's `idle` (before its `start`), or call it again."""
        self._idle = None if held else getattr(self.endpoint.server, "idle", None)
        lib.atoll_loop_idle_wanted(self.c, self._idle is not None)

    def stop(self) -> None:
        """Leave `serve` at the next turn."""
        self._stopping = True
        lib.atoll_loop_until(self.c, 1)

    def pending(self, *, lost: bool = False) -> list[str]:
        """What keeps a drain from ending: the methods of the calls in hand, one a call, and replies without room. `lost`:
        without the calls that their clients send again."""
        kept = [f"a reply that channel {number} has no room for" for number in self._replies.waiting()]
        held = [inhand.spec for inhand in self._tasks.in_hand.values()]
        return [spec.label for spec in held if not lost or not (spec.idempotent or spec.once)] + kept

    def busy(self) -> str:
        """The method whose plain handler runs now; empty if none does."""
        index = self._status_words[9]
        return self.endpoint.table[index - 1].spec.label if 0 < index <= len(self.endpoint.table) else ""

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`."""
        descriptor = trio_inside.descriptor()
        if descriptor is not None:
            lib.atoll_loop_watch(self.c, descriptor)
        else:
            self._outside = lib.atoll_loop_sleep_outside(self.c)
        with self._runnable.watched(deadlines=descriptor is not None):
            async with trio.open_nursery() as nursery:
                self._tasks.opened(nursery)
                task_status.started()
                try:
                    await self._serve()
                finally:
                    INLINE.read = None  # tasks go on until they are cancelled, each for its own call
                nursery.cancel_scope.cancel()

    def _stir(self) -> None:
        """trio has something to do."""
        lib.atoll_loop_until(self.c, 1)
        if self._sleep is not None:
            self._sleep.cancel()

    async def _serve(self) -> None:
        receive, loop, runs = lib.atoll_loop_next, self.c, self._runs
        views, cut = self._views.kept, self._views.cut
        notice, status, inline = self._notice_words, self._status_words, INLINE
        full = self._tasks.shares.full
        longest_call = (int(Op.CAST) + 1 << 56) - 1
        inline.thread, inline.read = threading.get_ident(), self._fields
        reply, packed, seen = b"", 0, notice[1]
        while True:
            received = receive(loop, reply, packed)
            if received < SHORT_CALLS:
                run, view = runs[received >> SHORT_BITS], views[received & SHORT_MOST]
                if view is None:
                    view = cut(received & SHORT_MOST)
            elif received <= longest_call:
                run, view = self._long(received >> 32 & INDEX, received & LENGTH)
            else:
                reply, packed = await self._other(received, reply, packed)
                if self._stopping and received >> 56 == Op.EXTERNAL:
                    lib.atoll_loop_flush(loop)
                    return
                continue
            inline.call = None
            if notice[1] != seen:
                seen = notice[1]
                # Who stood here for longer than the kernel waits is killed, and may go on for some steps until then.
                # Cannot be spared: another look where the count of revocations has moved, `lib.atoll_loop_recheck`.
                refusal = lib.atoll_loop_recheck(loop, self._message)
                if refusal:
                    reply, packed = self._refuse(refusal)
                    continue
            status[0] = 0
            if full:
                answer = self._overloaded()
                if answer is not None:
                    reply, packed = answer
                    continue
            try:
                result = run(view)
            except AtollError as error:
                reply, packed = self._failed(error)
                continue
            except Exception as error:  # no caller's bytes end a process, whatever decodes them
                reply, packed = self._fault(internal(self.endpoint.table[self._message.needed].spec, error))
                continue
            if result.__class__ is bytes:
                reply = result
                packed = len(reply)
            else:
                reply, packed = b"", 0
                if result is not None:
                    reply, packed = self._later(result)

    async def _other(self, received: int, reply: bytes, packed: int) -> tuple[bytes, int]:
        """Everything that is not a call to dispatch; gives what to reply with."""
        index, low = received >> 32 & INDEX, received & LENGTH
        match received >> 56:
            case Op.EXTERNAL:
                await self._turn()
            case Op.CLIENT:
                self.look(self.clients[low])
            case Op.STREAM:
                self._stream(low)
            case Op.IDLE:
                self._run_idle()
            case Op.REFUSED:
                return self._refuse(index)
            case Op.LATE:
                return self._fault(DeadlineExceeded(self.endpoint.table[index].spec.label))
            case Op.MISBEHAVED:
                self._misbehaved(low)
            case Op.FULL:
                message = self._message
                self._replies.keep(low, message.request, message.lane, packed >> 32 or Kind.REPLY, reply)
            case Op.LARGE:
                return self._fault(self._replies.too_large("a reply", low, reply))
            case Op.GATED:
                await self._gated()
            case Op.PARKED:
                await self._sleep_in_trio()
            case Op.TAPE:
                self.tape(index)
        return b"", 0

    def _for_no_call(self, action: Callable[[], Any]) -> Any:
        """Run what belongs to calls of before, or to none: the message that came last is not in hand there."""
        read = INLINE.read
        INLINE.read, INLINE.between = None, True
        try:
            return action()
        finally:
            INLINE.read, INLINE.between = read, False

    def look(self, client: ClientChannel) -> None:
        """Take what has arrived for a client of this process, and hear what the kernel says of its channel."""
        self._for_no_call(client.look)
        if isinstance(client.failed, PeerMisbehaved):
            # What it wrote stays in its ring: looked at again, it would take up every turn until the kernel closes it.
            lib.atoll_loop_remove(self.c, client.number)

    async def _turn(self) -> None:
        """trio's turn; then say until when the C loop may wait."""
        INLINE.read = None
        self._replies.flush()
        if clock.monotonic() >= self._idle_due:
            self._run_idle()
        await trio.lowlevel.checkpoint()
        INLINE.read = self._fields
        self._wait_until()

    async def _sleep_in_trio(self) -> None:
        """Until a ring, or something that trio has to do, or the time to be idle."""
        INLINE.read = None
        with trio.CancelScope() as self._sleep:
            if self._idle_due != math.inf:
                self._sleep.deadline = trio.current_time() + self._idle_due - clock.monotonic()
            await trio.lowlevel.wait_readable(self._outside)
        self._sleep = None
        lib.atoll_loop_wake(self.c)
        lib.atoll_loop_until(self.c, 1)
        INLINE.read = self._fields

    def _wait_until(self) -> None:
        """Say until when the C loop may wait: trio's next deadline, or not at all if something is runnable there."""
        if self._runnable.any or self._stopping:
            lib.atoll_loop_until(self.c, 1)
            return
        wait = min(trio_inside.seconds_to_deadline(), self._idle_due - clock.monotonic())
        lib.atoll_loop_until(self.c, 0 if wait == math.inf else trio_inside.moment_in(wait))

    async def _gated(self) -> None:
        """The kernel is about to freeze us, or has just thawed us: nothing is taken meanwhile."""
        INLINE.read = None
        await trio.sleep(0.001)
        INLINE.read = self._fields

    def _run_idle(self) -> None:
        if self._idle is None:
            return
        wait = self._for_no_call(self._idle)
        self._idle_due = math.inf if wait is None else clock.monotonic() + wait
        if wait is not None:
            self._wait_until()  # it may have woken somebody, or others' time may come before

    # one call ---------------------------------------------------------------------------------------------------------

    def _runner(self, entry: Entry) -> Callable[[memoryview], object]:
        if entry.spec.kind == "upload":
            return lambda view: self._tasks.upload(
                entry.spec,
                Origin(self._message),
                partial(entry.run, view),
                Call(self._fields(), INLINE.clock),
            )
        return entry.run

    def _long(self, index: int, length: int) -> tuple[Callable[[memoryview], object], memoryview]:
        """What runs a call that is too long for a word of its own, or a cast, and its request."""
        view = self._buffer[:length]
        return (self._runs[index], view) if length <= MAX_PAYLOAD else (self._refuse_length, view)

    def _refuse_length(self, view: memoryview) -> NoReturn:
        label = self.endpoint.table[self._message.needed].spec.label
        raise TooLarge(f"a request for {label}", len(view), MAX_PAYLOAD)

    def _later(self, result: Any) -> tuple[bytes, int]:
        """A handler returned something to wait for. The answer, if there is one already."""
        message = self._message
        spec = self.endpoint.table[message.needed].spec
        if result.__class__ is Deferred:
            if not result.done:
                self._tasks.defer(spec, Origin(message), result)
                return b"", 0
            try:
                reply = result.result()
            except AtollError as error:
                return self._failed(error)
            return reply, len(reply)
        call = INLINE.call or Call(self._fields(), INLINE.clock)
        if result.__class__ is not CoroutineType or not self._tasks.may_begin(
            message.channel, message.request
        ):
            self._tasks.later(spec, Origin(message), result, call)
            return b"", 0
        INLINE.read = None
        try:
            reply = self._tasks.begin(spec, partial(Origin, message), result, call)
        except AtollError as error:
            return self._failed(error)
        finally:
            INLINE.read = self._fields
        if reply is None:
            self._wait_until()  # what it waits for may be a moment
            return b"", 0
        return reply, len(reply)

    def channel_in_hand(self) -> int:
        """The number of the channel that the message in hand came by."""
        return int(self._message.channel)

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
            trace=message.trace or trace_of(message.channel, message.request),
            **carried(message),
            client=message.channel,
            request=message.request,
        )

    def _rights_of(self, interface: int, bits: int) -> frozenset[str]:
        held = self._held.get((interface, bits))
        if held is None:
            names = self.rights[interface]
            held = frozenset(name for bit, name in enumerate(names) if bits >> bit & 1)
            self._held[interface, bits] = held
        return held

    # replies ----------------------------------------------------------------------------------------------------------

    def _fault(self, error: AtollError) -> tuple[bytes, int]:
        reply = errors.encode(error)
        return reply, Kind.FAULT << 32 | len(reply)

    def _overloaded(self) -> tuple[bytes, int] | None:
        """The answer to a client that has in hand what it may have; None: another one has."""
        message = self._message
        spec = self.endpoint.table[message.needed].spec
        error = self._tasks.shares.refusal(message.channel, spec.label)
        if error is None:
            return None
        if isinstance(error, QuotaExceeded):
            self.observer.refused(message.channel, message.slot, spec.number, "quota")
        return self._fault(error)

    # refusals and streams ---------------------------------------------------------------------------------------------

    def _refuse(self, refusal: int) -> tuple[bytes, int]:
        message, why = self._message, Refusal(refusal)
        self.observer.refused(message.channel, message.slot, message.method, WHY[why])
        entry = self.endpoint.by_number.get(message.method)
        held = frozenset() if entry is None else self._rights_of(message.interface, message.rights)
        return self._fault(error_of(why, message.method, None if entry is None else entry.spec, held))

    def _failed(self, error: AtollError) -> tuple[bytes, int]:
        """A handler raised it."""
        message = self._message
        if refuses(error, self.endpoint.table[message.needed].spec):
            self.observer.refused(message.channel, message.slot, message.method, WHY[Refusal.RIGHTS])
        return self._fault(error)

    def _recheck(self, inhand: InHand) -> AtollError | None:
        """The second look at a call's capability, after the time in trio's queue: what `revoke` did meanwhile holds."""
        origin, message = inhand.origin, self._again
        message.channel, message.slot = origin.channel, origin.slot
        message.generation, message.rights = origin.generation, origin.rights
        refusal = lib.atoll_loop_recheck(self.c, message)
        self._status_words[0] = 0
        if not refusal:
            return None
        self.observer.refused(origin.channel, origin.slot, inhand.spec.number, WHY[Refusal(refusal)])
        return Revoked(inhand.spec.label)

    def _misbehaved(self, channel: int) -> None:
        if channel in self._channels:  # else it was told of already
            self._bad(channel, ffi.string(lib.atoll_channel_fault(self._channels[channel])).decode())

    def _bad(self, channel: int, check: str) -> None:
        self.observer.misbehaved(channel, check)
        self.remove(channel)

    def _stream(self, length: int) -> None:
        """A record that belongs to a call in hand; one that is over is no fault: both sides may end it."""
        message = self._message
        inhand = self._tasks.in_hand.get((message.channel, message.request))
        if inhand is None:
            return
        channel, payload = message.channel, self._buffer[:length]
        try:
            match message.kind:
                case Kind.CANCEL:
                    self._tasks.cancel(inhand)
                case Kind.END if inhand.items is not None:
                    inhand.items.ended()
                case Kind.ITEM if inhand.items is not None:
                    inhand.items.arrived(_items.decode(payload))
                case Kind.CREDIT if inhand.credit is not None:
                    inhand.credit.grant(_credit.decode(payload))
                case _:
                    self._bad(channel, "record of no stream")
        except DecodeFaults:
            self._bad(channel, "stream record")
        except PeerMisbehaved:
            self._bad(
                channel, "upload without credit" if message.kind == Kind.ITEM else "more credit than a window"
            )


__all__ = ["LANES", "Observer", "ServeLoop"]
