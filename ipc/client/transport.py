"""One capability as a client holds it: the `Transport` under its proxies. (Raw cffi.)

The quickest call is the usual one: no deadline, no trace, nobody else receiving. It is one C call that sends, wakes, waits
and receives; everything else is a request in hand (pending.py).
"""

from collections.abc import Callable
from typing import Any

from atoll.ipc import clock, context, errors
from atoll.ipc.errors import DeadlineExceeded
from atoll.ipc.future import RawReply
from atoll.ipc.method import LANES, MethodSpec
from atoll.ipc.system.control import Port
from atoll.ipc.transport import DEFAULTS, ChannelStatistics, Options, Translator, keyed
from atoll.native import Kind, Result, lib

from .channel import LENGTH, VIEWS, ClientChannel
from .pending import NANOSECONDS, Pending, Site
from .stream import ChannelStream

FAR = 9e9
"""CLOCK_MONOTONIC seconds: a message holds a deadline in 64 bits of nanoseconds."""
_ID, _CONTEXT_BLOCK = 16, 64
"""`struct context` of layout.h begins with two ids; what is all zero is not there."""


class ChannelTransport:
    """See `atoll.ipc.transport.Transport`."""

    def __init__(self, channel: ClientChannel, port: Port, translator: Translator | None = None) -> None:
        self.channel = channel
        self.port = port
        self._translator = translator
        self._sites: dict[tuple[MethodSpec, int, Kind], Site] = {}
        self._quick: dict[MethodSpec, Any] = {}
        self._plain: dict[MethodSpec, Site] = {}
        self._call = lib.atoll_call
        self._enter = channel.receiving.acquire
        self._exit = channel.receiving.release
        self._views = channel.views.kept
        self.streams: Callable[[ClientChannel, Pending], ChannelStream] = ChannelStream
        """What carries a stream; whoever wants to see what passes puts its own here."""

    @property
    def translator(self) -> Translator | None:
        return self._translator

    def _site(self, spec: MethodSpec, options: Options, kind: Kind) -> Site:
        lane = spec.lane if options.service is None else LANES[options.service]
        lane = min(max(lane, self.port.service), self.channel.lanes - 1)
        found = self._sites.get((spec, lane, kind))
        if found is None:
            found = self._sites[spec, lane, kind] = Site(
                spec, self.port.slot, self.port.generation, lane, kind
            )
        return found

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        channel = self.channel
        if (
            options is not DEFAULTS
            or channel.bound_to_loop
            or channel.failed is not None
            or channel.outbox.owed
            or not self._enter(False)
        ):
            return self._call_slowly(method, payload, options)
        channel.unarmed = True
        try:
            site = self._quick.get(method)
            if site is None:
                site = self._quick[method] = self._site(method, options, Kind.CALL).c
            channel.calls += 1
            try:
                result = self._call(channel.c, site, payload, len(payload))
            except BaseException:
                self._interrupted(method)
                raise
            if 0 <= result <= LENGTH:
                view = self._views[result] if result < VIEWS else None
                return channel.views.copy(result) if view is None else view.tobytes()
            pending = self._adopt(method, payload, result)
        finally:
            self._exit()
            if channel.turns or channel.pending or channel.outbox.owed or channel.bound_to_loop:
                channel.pass_on()  # else nobody would take what it hands on
        if pending is None:
            # Sent only now: to wait for room is to receive, which nobody could while this thread kept it to itself.
            pending = channel.request(self._site(method, options, Kind.CALL), payload, 0, 0, None)
        return _result(pending)

    def _interrupted(self, method: MethodSpec) -> None:
        """A thread is interrupted in a quick call (Ctrl-C): what it has received for another goes there, and the server
        hears that nobody waits. Holds `receiving`."""
        channel = self.channel
        channel.route_interrupted()
        if lib.atoll_call_waits(channel.c):
            pending = Pending(channel, self._site(method, DEFAULTS, Kind.CALL), b"", 0, 0, None)
            pending.number, pending.end = lib.atoll_call_request(channel.c), lib.atoll_call_end(channel.c)
            channel.outbox.cancel(pending)

    def _adopt(self, method: MethodSpec, payload: bytes, result: int) -> Pending | None:
        """A quick call that no plain reply answered at once becomes a request like others; None: it is still to be sent.
        Holds `receiving`."""
        channel = self.channel
        if result >= 0:
            channel.faults += 1
            raise errors.decode(channel.views.copy(result & LENGTH), method)
        if result in (Result.AGAIN, Result.OTHER) or lib.atoll_call_waits(channel.c):
            pending = Pending(channel, self._site(method, DEFAULTS, Kind.CALL), payload, 0, 0, None)
            pending.number = lib.atoll_call_request(channel.c)
            pending.end = lib.atoll_call_end(channel.c)
            channel.adopt(pending)
            if result == Result.OTHER:
                channel.route_current()
            else:
                channel.trouble(result, method, receiving=True)
            return pending
        if result != Result.FULL:
            channel.trouble(result, method, len(payload), receiving=True)
        return None

    def _call_slowly(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        self.channel.host.may_block(method.label)
        self.channel.calls += 1
        return _result(self._request(method, payload, options))

    def _request(self, method: MethodSpec, payload: bytes, options: Options, waits: bool = False) -> Pending:
        """Send a call that is to be kept in hand. `waits`: a task waits for its reply."""
        options = context.inherited(options, method)
        until, trace, block, seconds = _circumstances(method, payload, options)
        site = self._site(method, options, Kind.CALL)
        opens = self.streams if method.kind != "call" else None
        return self.channel.request(
            site, payload, until, trace, block, options.request, seconds, opens, waits
        )

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        self.channel.calls += 1
        return await self._request(method, payload, options, True)

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        channel = self.channel
        channel.calls += 1
        if options is DEFAULTS and context.current_or_none() is None:
            site = self._plain.get(method)
            if site is None:
                site = self._plain[method] = self._site(method, options, Kind.CALL)
            pending = channel.request_plainly(site, payload)
        else:
            pending = self._request(method, payload, options)
        channel.host.sent()
        return pending

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        options = context.inherited(options, method)
        until, trace, block, _ = _circumstances(method, payload, options)
        self.channel.cast(self._site(method, options, Kind.CAST), payload, until, trace, block)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> ChannelStream:
        self.channel.streams += 1
        pending = self._request(method, payload, options, True)
        self.channel.host.sent()
        assert isinstance(pending.stream, ChannelStream)  # it is what `streams` made
        return pending.stream

    def statistics(self) -> ChannelStatistics:
        return self.channel.statistics()


class Unhindered(ChannelTransport):
    """A transport whose blocking calls are made also from inside a handler: for the SDK's own short system calls."""

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> bytes | memoryview:
        pending = self._request(method, payload, options)
        self.channel.wait(pending, 0)
        return pending.outcome()


def _result(pending: Pending) -> bytes | memoryview:
    """The reply, which nobody waits for but this thread."""
    try:
        return pending.result()
    except BaseException:
        pending.cancel()  # it is over already, unless the thread was interrupted
        raise


def _circumstances(
    method: MethodSpec, payload: bytes, options: Options
) -> tuple[int, int, bytes | None, float | None]:
    """Deadline (CLOCK_MONOTONIC ns, 0: none), trace, context block and given seconds of a call made now. `options`: with
    what it inherits of the call in hand."""
    until = 0
    if options.deadline is not None or options.until is not None:
        now = clock.monotonic()
        end = options.expiry(now)
        if end is None or end <= now:
            raise DeadlineExceeded(method.label, options.deadline)
        until = int(min(end, FAR) * NANOSECONDS)
    block = None
    if options.transaction or options.key:
        named = (options.transaction or b"").ljust(_ID, b"\0") + (keyed(options, method, payload) or b"")
        block = named.ljust(_CONTEXT_BLOCK, b"\0")
    return until, options.trace, block, options.deadline
