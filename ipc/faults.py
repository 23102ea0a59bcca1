"""Fault injection: a transport in front of another that fails at chosen steps.

A step is one message of the client: a call, a cast, or the opening of a stream; the first is step 1. What a
real transport would send again after a crash (what was never taken, `idempotent` and `once` methods) is sent
again here too, with the same request id; the rest ends with `PeerDied`.
"""

import itertools
from collections.abc import Callable

from msgspec import Struct

from .errors import AtollError, Overloaded, PeerDied
from .future import Payload, RawFuture, RawReply
from .method import MethodSpec
from .transport import ChannelStatistics, Options, RawStream, Translator, Transport

_requests = itertools.count(1 << 40)


class Drop(Struct, frozen=True, kw_only=True):
    """The peer dies at step `at`: before it took the message, or (`taken`) after its handler ran and before
    the reply. Of a stream: after `items` items of it have passed."""

    at: int
    taken: bool = True
    items: int = 0


class Delay(Struct, frozen=True, kw_only=True):
    """The message of step `at` arrives only when `release` is called. It cannot be the opening of a stream: TypeError."""

    at: int


class Overload(Struct, frozen=True, kw_only=True):
    """The server turns the message of step `at` away: it has too much in hand."""

    at: int


Fault = Drop | Delay | Overload


class FaultyTransport:
    """See the module. Wraps any transport, so that a test of a client needs no broken server."""

    def __init__(self, inner: Transport, *faults: Fault) -> None:
        self.inner = inner
        self._faults = {fault.at: fault for fault in faults}
        self._held: list[Callable[[], None]] = []
        self.steps = 0
        """Messages so far, those sent again not counted."""

    @property
    def translator(self) -> Translator | None:
        return self.inner.translator

    def release(self) -> None:
        """Let every delayed message arrive, in order."""
        held, self._held = self._held, []
        for send in held:
            send()

    def _step(self) -> Fault | None:
        self.steps += 1
        return self._faults.get(self.steps)

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        fault = self._step()
        if fault is None:
            return self.inner.start(method, payload, options)
        future = RawFuture()
        if isinstance(fault, Overload):
            future.fail(Overloaded(method.label))
        elif isinstance(fault, Delay):
            self._held.append(lambda: _pass(self.inner.start(method, payload, options), future))
        else:
            self._drop(fault, method, payload, _numbered(options), future)
        return future

    def _drop(
        self, fault: Drop, method: MethodSpec, payload: bytes, options: Options, future: RawFuture
    ) -> None:
        def again() -> None:
            _pass(self.inner.start(method, payload, options), future)

        if not fault.taken:
            again()
            return
        first = self.inner.start(method, payload, options)

        def died() -> None:
            if method.idempotent or method.once:
                again()
            else:
                future.fail(PeerDied(method.label))

        first.add_done_callback(died)

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        return self.start(method, payload, options).result()

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        return await self.start(method, payload, options)

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        fault = self._step()
        if isinstance(fault, Delay):
            self._held.append(lambda: self.inner.cast(method, payload, options))
        elif fault is None or (isinstance(fault, Drop) and fault.taken):
            self.inner.cast(method, payload, options)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        fault = self._step()
        if isinstance(fault, Overload):
            raise Overloaded(method.label)
        if isinstance(fault, Delay):
            raise TypeError(
                f"step {fault.at} opens {method.label}, a {method.kind}: "
                "Delay holds back calls and casts only; delay another step"
            )
        stream = self.inner.open(method, payload, options)
        return _BrokenStream(stream, method, fault.items) if isinstance(fault, Drop) else stream

    def statistics(self) -> ChannelStatistics:
        return self.inner.statistics()


def _numbered(options: Options) -> Options:
    from msgspec.structs import replace

    return replace(options, request=options.request or next(_requests))


def _pass(reply: RawReply, future: RawFuture) -> None:
    def done() -> None:
        try:
            data = reply.result()
        except AtollError as error:
            future.fail(error)
        else:
            future.complete(data)

    reply.add_done_callback(done)


class _BrokenStream:
    """A stream whose peer dies after some items."""

    def __init__(self, inner: RawStream, spec: MethodSpec, items: int) -> None:
        self._inner = inner
        self._spec = spec
        self._left = items

    def _die(self) -> PeerDied:
        self._inner.cancel()
        return PeerDied(self._spec.label)

    def _cut(self, received: list[bytes] | None) -> list[bytes] | None:
        if received is None:
            return None
        passed = received[: self._left]
        self._left -= len(passed)
        return passed

    def receive_now(self) -> list[bytes] | None:
        if self._left <= 0:
            raise self._die()
        return self._cut(self._inner.receive_now())

    async def receive(self) -> list[bytes] | None:
        if self._left <= 0:
            raise self._die()
        return self._cut(await self._inner.receive())

    def send_now(self, item: bytes) -> None:
        self._count()
        self._inner.send_now(item)

    async def send(self, item: bytes) -> None:
        self._count()
        await self._inner.send(item)

    def _count(self) -> None:
        if self._left <= 0:
            raise self._die()
        self._left -= 1

    def finish(self) -> None:
        self._inner.finish()

    def cancel(self) -> None:
        self._inner.cancel()
