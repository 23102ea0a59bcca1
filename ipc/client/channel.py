"""The client end of a channel: requests in hand, routing of replies, recovery after a server's death. (Raw cffi.)

Every request but the quickest is a `Pending` here, kept with its payload until its reply is in: when the server dies, what
the dead one never took, and what may be repeated, is sent again; the rest ends with `PeerDied`, outcome unknown. What is
written, and what of it is sent again, is outbox.py's.

Who receives. Replies of all requests come out of the same rings, so at any time one thread receives for everybody. It
holds `receiving` while it is inside the C core; it routes what is not its own. A thread that cannot have the lock waits
for its reply or for its turn. An event loop takes the lock only for the moment of draining, and is kicked when a thread
leaves while requests are open.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from copy import copy
from threading import get_ident
from typing import Any

from atoll.ipc import clock, errors
from atoll.ipc.errors import (
    Aborted,
    BadRequest,
    DeadlineExceeded,
    NodeDown,
    Overloaded,
    PeerDied,
    PeerMisbehaved,
    TooLarge,
)
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.control import OpenChannel
from atoll.ipc.transport import ChannelStatistics
from atoll.ipc.views import Views
from atoll.native import Kind, Result, ffi, lib

from . import arrivals, forking
from .host import Host, Subscribe
from .outbox import MARK, Outbox
from .pending import NANOSECONDS, Opened, Pending, Site

VIEWS = 2049
"""Replies up to 2 KiB are read through views that are kept."""
NUMBERS = 256
"""Request numbers drawn from the C core at a time."""
DRAIN_MOST = 4096
"""Messages routed in one go: a server that sends without end must not keep an event loop from its other tasks."""
SEND_PATIENCE = 5.0
"""Seconds a thread waits for room in a full ring before its call is `Overloaded`."""
DYING = 0.1
"""Seconds within which a kernel that has closed its descriptors is seen to have ended."""
REPLY = int(Kind.REPLY)
LENGTH = 0xFFFFFFFF


class ClientChannel:
    """See the module. `memory` may be closed afterwards; `doorbell` stays open as long as the channel."""

    def __init__(
        self, opened: OpenChannel, memory: int, doorbell: int, notice: mmap.mmap, host: Host
    ) -> None:
        shape = opened.shape
        self.number = opened.channel
        self.peer = opened.peer
        self.lanes = shape.lanes
        self.doorbell = doorbell
        self.host = host
        self.bound_to_loop = False
        """A receive loop (a server's) drains this channel; nobody else may."""
        self._notice = ffi.from_buffer(notice)
        self.c = lib.atoll_channel_open(
            memory,
            doorbell,
            0,
            shape.lanes,
            shape.ring_bits,
            shape.bulk_bits,
            opened.epoch,
            opened.base,
            self._notice + 64 * (opened.notice + 1),
        )
        if self.c == ffi.NULL:
            raise OSError(
                ffi.errno, f"channel {opened.channel} to {opened.peer}: its memory could not be mapped"
            )
        self._message = lib.atoll_channel_message(self.c)
        self._counters = lib.atoll_channel_counters(self.c)
        self._taken = ffi.new("uint64_t[3]")
        self._buffer = memoryview(
            ffi.buffer(lib.atoll_channel_buffer(self.c), lib.atoll_channel_limit(self.c))
        )
        self.views = Views(self._buffer, VIEWS)
        """Of what was received last."""
        self.receiving = threading.Lock()
        self._receiver = 0
        """The thread that routed something last."""
        self.pending: dict[int, Pending] = {}
        self._numbers: Iterator[int] = iter(())
        self.failed: errors.AtollError | None = None
        self._stopped = False
        """It failed because its server was stopped: a restart mends it."""
        self._retired = False
        self.calls = self.casts = self.streams = self.faults = 0
        self.waited = 0
        self.turns: list[threading.Event] = []
        """Threads that wait for their turn to receive."""
        self.unarmed = False
        """An event loop may sleep without a ring to come: whoever receives now kicks it when it leaves."""
        self.outbox = Outbox(self.c, opened.epoch, self.pending)
        forking.watch(self)

    def forked(self) -> None:
        """This process is a fork of the one that opened it: see forking.py. No lock is taken here: a thread that there is no
        more may have it."""
        self._stopped = False
        self.failed = BadRequest(
            f"a call to {self.peer}",
            "a proxy opened in this process",
            "one that a fork inherited: connect anew",
        )
        inherited = list(self.pending.values())
        self.pending.clear()
        self.outbox.disown()
        for pending in inherited:
            pending.disown(self.failed)

    # sending ----------------------------------------------------------------------------------------------------------

    def request(
        self,
        site: Site,
        payload: bytes,
        until: int,
        trace: int,
        context: bytes | None,
        number: int = 0,
        seconds: float | None = None,
        opens: Callable[["ClientChannel", Pending], Opened] | None = None,
        waits: bool = False,
    ) -> Pending:
        """Send a call and keep it until its reply is in. Raises what keeps it from being sent. `opens` makes the
        stream that it opens; `waits`: a task waits for the reply."""
        pending = Pending(self, site, payload, until, trace, context)
        pending.number = number or next(self._numbers, 0) or self._more_numbers()
        pending.seconds = seconds
        if opens is not None:
            pending.stream = opens(self, pending)
        self.pending[pending.number] = pending
        try:
            self._send(pending, site.again if number else site.c, waits)
        except BaseException:
            if self.pending.pop(pending.number, None) is not None and pending.end:
                self.outbox.cancel(pending)  # it was written, and then its thread was interrupted
            raise
        return pending

    def request_plainly(self, site: Site, payload: bytes) -> Pending:
        """`request` of a call with nothing but its arguments: one step into the C core that sends and wakes."""
        pending = Pending(self, site, payload, 0, 0, None)
        number = pending.number = next(self._numbers, 0) or self._more_numbers()
        self.pending[number] = pending
        outbox = self.outbox
        straight = self.failed is None and not outbox.owed
        end = lib.atoll_post(self.c, site.c, number, payload, len(payload)) if straight else -1
        if end >= 0:
            pending.end = end
            if end & MARK in outbox.dead:
                outbox.claim(pending)
            return pending
        try:  # whatever keeps it from being sent, `_send` meets it again and deals with it
            self._send(pending, site.c)
        except BaseException:
            self.pending.pop(number, None)
            raise
        return pending

    def _more_numbers(self) -> int:
        """The first of a new block of request numbers, which are drawn one by one without a step into the C core."""
        first: int = lib.atoll_reserve_requests(self.c, NUMBERS)
        self._numbers = iter(range(first + 1, first + NUMBERS))
        return first

    def _send(self, pending: Pending, site: Any, waits: bool = False) -> None:
        """Write a request. Without room it is owed on the thread of an event loop, which must not stand; as many as their
        tasks wait for (`waits`), of others so much at most. A thread waits for room. Beyond it is `Overloaded`."""
        give_up = 0
        while True:
            self._reopen()
            result = self.outbox.put(pending, site) if not self.outbox.owed else int(Result.FULL)
            if result == Result.FULL and (waits or self.host.looping()):
                if not waits and not self.outbox.may_owe(pending):
                    raise Overloaded(f"the channel to {self.peer}")
                result = self.outbox.put_or_owe(pending, site)
            if result in (Result.EPOCH, Result.CLOSED) and self._routing():
                # Whoever receives, up the stack, renews the channel and sends it then.
                result = self.outbox.owe(pending, site)
            if result >= 0:
                lib.atoll_ring_bell(self.c)
                return
            if result != Result.FULL:
                self.trouble(result, pending.site.spec, len(pending.payload))
                continue
            now = clock.monotonic_ns()
            give_up = min(filter(None, (give_up, pending.until, now + int(SEND_PATIENCE * NANOSECONDS))))
            if now >= give_up:
                raise Overloaded(f"the channel to {self.peer}")
            lib.atoll_ring_bell(self.c)
            if not self.drain():
                self._look_at_kernel()  # a dead node makes no room
                clock.sleep(0.0002)

    def _reopen(self) -> None:
        """Raise why the channel has ended, unless its server was started again meanwhile."""
        if self.failed is not None and not self._opened_again():
            raise copy(self.failed)  # a fresh one: a traceback grows with each raise

    def cast(self, site: Site, payload: bytes, until: int, trace: int, context: bytes | None) -> None:
        """Send without a request of our own; `Overloaded` if there is no room: a cast is at most once."""
        while True:
            self._reopen()
            result = int(Result.FULL)
            if not self.outbox.owed:
                block = ffi.NULL if context is None else context
                result = lib.atoll_send(self.c, site.c, 0, payload, len(payload), until, trace, block)
            lib.atoll_ring_bell(self.c)
            if result >= 0:
                self.casts += 1
                return
            if result == Result.FULL:
                raise Overloaded(f"the channel to {self.peer}")
            if result in (Result.EPOCH, Result.CLOSED) and self._routing():
                return  # its server is dead
            self.trouble(result, site.spec, len(payload))

    def _routing(self) -> bool:
        """Whether this thread receives, further up its stack: what it routed has somebody send. It cannot look at the
        channel here, and waits for nobody else who does."""
        return self._receiver == get_ident() and self.receiving.locked()

    def withdraw(self, pending: Pending) -> None:
        """Nobody waits for this request any more: end it, tell the server. Whoever might receive, and so pay, is gone,
        too."""
        if self.pending.pop(pending.number, None) is None:
            return
        pending.fail(Aborted(pending.site.spec.label, "its caller gave up waiting"))
        self.outbox.cancel(pending)
        if self.outbox.owed:
            self.host.owing(self.outbox.when_paid, lambda: self.settle(pending))

    def settle(self, pending: Pending) -> None:
        """Halt this thread until nothing is owed, for as long as a call waits for room at most. `pending`: a request that is
        over."""
        limit = clock.monotonic_ns() + int(SEND_PATIENCE * NANOSECONDS)
        with contextlib.suppress(errors.AtollError):  # the channel has ended: nothing is owed
            self.block(pending, lambda: not self.outbox.owed, self.outbox.when_paid, limit)

    @property
    def open_ended(self) -> bool:
        """Whether something is to come of it yet: a reply, or room for what is owed."""
        return bool(self.pending or self.outbox.owed)

    # receiving --------------------------------------------------------------------------------------------------------

    def drain(self) -> int:
        """Route what has arrived; how many messages. 0 also if another thread is receiving."""
        if not self.receiving.acquire(blocking=False):
            return 0
        try:
            return self._drain()
        finally:
            self.leave()

    def _drain(self) -> int:
        self._receiver = get_ident()
        count = 0
        while count < DRAIN_MOST:
            try:
                result = lib.atoll_receive(self.c)
            except BaseException:
                self.route_interrupted()
                raise
            if result < 0:
                break
            self.route(result)
            count += 1
        if result == Result.MISBEHAVED or self.outbox.pay() == Result.MISBEHAVED:
            self.misbehaved()
        return count

    def route_current(self) -> None:
        """Route the message that the C core holds for us."""
        self._receiver = get_ident()
        self.route(self._message.kind << 32 | self._message.length)

    def route_interrupted(self) -> None:
        """A thread is interrupted, by Ctrl-C say, as it comes back from receiving: what it has is routed all the same."""
        if self._message.kind:
            self.route_current()

    def look(self, *, arms: bool = False) -> int:
        """Awake again: take the ring off the doorbell, `drain`, learn of a new epoch or of the end from the notice. `arms`:
        an event loop looks, which arms again."""
        if not self.receiving.acquire(blocking=False):
            return 0
        try:
            if not self.bound_to_loop:
                self.unarmed = self.unarmed or not arms
                lib.atoll_disarm(self.c)
            count = self._drain()
            if self.failed is None and count < DRAIN_MOST:
                self._renew()
            if self.failed is None and lib.atoll_channel_deaf(self.c):
                self._deaf()
            return count
        finally:
            self.leave()

    def leave(self) -> None:
        """Stop receiving: the next thread's turn, or the event loop's."""
        self.receiving.release()
        self.pass_on()

    def pass_on(self) -> None:
        """Whoever stops receiving, or does not use its turn, sees to it that somebody receives for the rest."""
        if self.turns:
            self.turns.pop(0).set()
        elif self.bound_to_loop or (self.unarmed and self.open_ended):
            self.unarmed = False
            self.host.kick(self.number)

    def route(self, result: int) -> None:
        """Give the message that was just received to whoever waits for it. Replies to nobody are dropped."""
        message = self._message
        pending = self.pending.get(message.request)
        if pending is None:
            return
        kind, length = result >> 32, result & LENGTH
        stream = pending.stream
        if kind == REPLY and stream is None:
            payload = self.views.copy(length)
            del self.pending[pending.number]
            pending.complete(payload)
            return
        try:
            if stream is not None and arrivals.feed(pending, stream, kind, self._buffer[:length]):
                return
            error = arrivals.outcome(pending, kind, self._buffer[:length])
        except PeerMisbehaved as fault:
            self.misbehaved(fault.check)
            return
        if error is not None:
            self.faults += 1
            self._end(pending, error)
            return
        del self.pending[pending.number]
        if stream is not None:
            stream.ended(None)
        pending.complete(b"")

    def wait(self, pending: Pending, limit: int) -> None:
        """Block this thread until `pending` is done or CLOCK_MONOTONIC reaches `limit` (0: no limit)."""
        self.block(pending, pending.done, pending.add_done_callback, limit)

    def block(self, pending: Pending, over: Callable[[], bool], subscribe: Subscribe, limit: int = 0) -> None:
        """Block this thread, receiving when it is its turn, until `over()`, the limit, or the deadline of `pending`."""
        began = clock.monotonic_ns()
        handed = False  # it is our turn, and we have not received yet
        while not over():
            until = min(filter(None, (limit, pending.until)), default=0)
            now = clock.monotonic_ns()
            if until and now >= until:
                if pending.until and now >= pending.until:
                    self.expire(pending)
                break
            if self.receiving.acquire(blocking=False):
                handed = False
                self.unarmed = True  # threads sleep on the same word
                try:
                    self._receive_for(pending, over, until)
                    if self.pending and self.failed is None:
                        self._drain()  # what came with it: its waiters then need not come here one by one
                finally:
                    self.leave()
                continue
            turn = threading.Event()
            self.turns.append(turn)
            try:
                subscribe(turn.set)
                if self.receiving.locked():
                    turn.wait(1.0 if not until else min(1.0, (until - now) / NANOSECONDS))
            except BaseException:  # interrupted: a turn that it does not take is another's
                if turn in self.turns:
                    self.turns.remove(turn)
                else:
                    self.pass_on()
                raise
            if turn in self.turns:
                self.turns.remove(turn)
            else:
                handed = True
        if handed:
            self.pass_on()  # we need it no more
        self.waited += clock.monotonic_ns() - began

    def _receive_for(self, pending: Pending, over: Callable[[], bool], until: int) -> None:
        """Receive and route until `over()` or `until`. Holds `receiving`."""
        while not over() and self.failed is None:
            try:
                result = lib.atoll_wait(self.c, pending.number, until)
            except BaseException:
                self.route_interrupted()
                raise
            if result >= 0 or result == Result.OTHER:
                self.route_current()
                if self.outbox.owed:
                    self.outbox.pay()
                if until and result == Result.OTHER and clock.monotonic_ns() >= until:
                    return  # a server that sends without end keeps nobody past a deadline
            elif result == Result.DEADLINE:
                return
            else:
                self.trouble(result, pending.site.spec, receiving=True)

    def expire(self, pending: Pending) -> None:
        """The deadline has passed: tell the server, end the call."""
        if self.pending.pop(pending.number, None) is not None:
            self.outbox.cancel(pending)
            self._end(pending, DeadlineExceeded(pending.site.spec.label, pending.seconds))

    # trouble ----------------------------------------------------------------------------------------------------------

    def trouble(self, result: int, spec: MethodSpec, size: int = 0, *, receiving: bool = False) -> None:
        """Deal with a negative result; returns if it is worth trying again, else raises. `receiving`: it waited, and what
        it waited for says itself how it ended."""
        if result == Result.EPOCH or result == Result.CLOSED:
            if receiving:
                while self._drain() == DRAIN_MOST:
                    pass
                self._renew()
                return
            self.look()
            if self.failed is not None and result == Result.CLOSED:
                raise copy(self.failed)  # a fresh one: a traceback grows with each raise
            return
        if result == Result.TOO_LARGE:
            raise TooLarge(f"a message of {spec.label}", size, lib.atoll_channel_limit(self.c))
        if result == Result.AGAIN:
            self._look_at_kernel()
            if (result := self.outbox.pay()) != Result.MISBEHAVED:
                return
        if result == Result.MISBEHAVED:
            self.misbehaved()
            assert self.failed is not None
            raise copy(self.failed)
        raise errors.InternalFault(f"channel {self.number}", f"the C core answered {result}")

    def _deaf(self) -> None:
        """The doorbell's other end was shut, so that not even the kernel could ring. The kernel's end does that, too, and
        so does whoever closes a channel."""
        if not self.host.alive(DYING):
            self.down()
        elif not self.host.closed(self.number):
            self.misbehaved("doorbell")
        elif self.failed is None:
            self.bereave()

    def _look_at_kernel(self) -> None:
        if self.failed is None and not self.host.alive():
            self.down()
            raise NodeDown()

    def _renew(self) -> None:
        result = lib.atoll_channel_renew(self.c, self._taken)
        if result == Result.CLOSED:
            self.bereave()
            self._stopped = not self._retired
        elif result == 1:
            self._renewed()
        elif result == Result.AGAIN:
            self._look_at_kernel()  # it is writing the notice, or it died over it

    def _renewed(self) -> None:
        self.outbox.renewed(lib.atoll_channel_epoch(self.c), list(self._taken))

    def _opened_again(self) -> bool:
        """Whether a server that was stopped, or had crashed for good, was started again by a person."""
        if not self._stopped or not self.receiving.acquire(blocking=False):
            return False
        try:  # nobody else may be reading the rings that begin anew
            result = lib.atoll_channel_renew(self.c, self._taken)
            if result == 1:
                self._renewed()
            if result in (0, 1):
                self.failed, self._stopped = None, False
            return result in (0, 1)
        finally:
            self.leave()

    def _end(self, pending: Pending, error: errors.AtollError) -> None:
        self.pending.pop(pending.number, None)
        pending.over(error)

    def misbehaved(self, check: str = "") -> None:
        """Close the channel over what the peer wrote, and have the event recorded."""
        if self.failed is None:
            check = check or ffi.string(lib.atoll_channel_fault(self.c)).decode()
            self.host.misbehaved(self.number, check)
            error = PeerMisbehaved(f"the channel to {self.peer}, closed now (see `atoll refused`)", check)
            self.fail(lambda _: error, error)

    def fail(self, each: Callable[[str], errors.AtollError], later: errors.AtollError) -> None:
        """End the channel: every request in hand gets `each(method)`, every later one `later`."""
        self.failed = later
        for pending in list(self.pending.values()):
            self._end(pending, each(pending.site.spec.label))
        self.outbox.forgive()

    def bereave(self) -> None:
        """Nobody serves it any more: what is in hand ends, outcome unknown, and nothing later is taken."""
        self.fail(lambda method: PeerDied(method, True), PeerDied(f"a call to {self.peer}", False))

    def down(self) -> None:
        """The kernel has ended."""
        self.fail(lambda _: NodeDown(), NodeDown())

    # event loops ------------------------------------------------------------------------------------------------------

    def arm(self) -> bool:
        """Have the peer ring the doorbell for the next message. False: there is something to drain now.

        A thread that receives meanwhile parks on the same word; it kicks the event loop when it leaves.
        """
        self.unarmed = True  # before we are turned away: who leaves now sees it
        if not self.receiving.acquire(blocking=False):
            return True
        try:
            self.unarmed = False
            armed = bool(lib.atoll_arm(self.c))
            if not armed:
                self.outbox.pay()  # what there is may be room, and is told but once
        finally:
            self.receiving.release()
            if self.turns:
                self.turns.pop(0).set()  # somebody came while we held the lock
        return armed and not self.unarmed  # another loop was turned away: what rang for it is for us to take

    def statistics(self) -> ChannelStatistics:
        counters = self._counters
        return ChannelStatistics(
            calls=self.calls,
            casts=self.casts,
            streams=self.streams,
            errors=self.faults,
            pending=len(self.pending),
            bytes_sent=counters.bytes_sent,
            bytes_received=counters.bytes_received,
            wakes=counters.wakes,
            waited=self.waited / NANOSECONDS,
        )

    def adopt(self, pending: Pending) -> None:
        """Have in hand a request that was written before it was one; it ends with a channel that has ended meanwhile."""
        self.pending[pending.number] = pending
        if self.failed is not None:
            self._end(pending, PeerDied(pending.site.spec.label, True))

    def retire(self) -> None:
        """The kernel has closed it, or this process lets go of it. Threads may be inside still; they leave, and memory and
        doorbell go with the last that knows it."""
        self._retired = True
        self.bereave()
        self._stopped = False
        lib.atoll_channel_end(self.c)

    def __del__(self) -> None:
        if getattr(self, "_retired", False):
            self._free()
            os.close(self.doorbell)

    def close(self) -> None:
        """Give the memory back, once the thread that receives has left. None may send, and no view of a reply may be left;
        the doorbell is the caller's."""
        if self.c is not None:
            self.bereave()
            self._stopped = False
            lib.atoll_channel_end(self.c)
            with self.receiving:
                self._free()

    def _free(self) -> None:
        self.views.kept.clear()
        self._buffer.release()
        lib.atoll_channel_close(self.c)
        self.c = None
