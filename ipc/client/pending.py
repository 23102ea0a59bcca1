"""Requests in hand at the client: one through one capability, kept until its reply is in. (Raw cffi.)

A request knows no channel and no stream, only what it asks of the one that carries it (`Carrier`) and what it keeps for that
one to feed (`Opened`).
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from atoll.ipc import clock
from atoll.ipc.errors import AtollError
from atoll.ipc.future import RawFuture
from atoll.ipc.method import MethodSpec
from atoll.native import Kind, ffi, lib

from .host import Host

NANOSECONDS = 1_000_000_000
AGAIN = 4
"""FLAG_AGAIN of layout.h: this request may have been delivered before."""


TRANSACTION = 16
"""Bytes that a context block begins with: the transaction's id, or zeros."""


class Site:
    """A method through a capability: what is the same in each of its calls, in C memory."""

    __slots__ = ("_of", "_shared", "again", "c", "spec")

    def __init__(self, spec: MethodSpec, slot: int, generation: int, lane: int, kind: Kind) -> None:
        self._shared = shared = {
            "method": spec.number,
            "slot": slot,
            "generation": generation,
            "lane": lane,
            "kind": int(kind),
            "copies": spec.local,
        }
        self.spec = spec
        self.c = ffi.new("atoll_site *", shared)
        self.again = ffi.new("atoll_site *", {**shared, "flags": AGAIN})
        self._of: dict[Kind, Any] = {}

    def of(self, kind: Kind) -> Any:
        """The same for records of another kind: those that belong to its calls."""
        found = self._of.get(kind)
        if found is None:
            found = self._of[kind] = ffi.new("atoll_site *", {**self._shared, "kind": int(kind)})
        return found


class Carrier(Protocol):
    """What a request asks of the channel that carries it."""

    host: Host
    c: Any
    """The channel in C memory."""
    bound_to_loop: bool
    """A receive loop drains it; nobody else may."""

    def drain(self) -> int:
        """Route what has arrived; how many messages."""
        ...

    def wait(self, pending: "Pending", limit: int) -> None:
        """Block this thread until the request is done or CLOCK_MONOTONIC reaches `limit` (ns; 0: no limit)."""
        ...

    def expire(self, pending: "Pending") -> None:
        """The request's deadline has passed: end it, tell the server."""
        ...

    def withdraw(self, pending: "Pending") -> None:
        """Nobody waits for the request any more: end it, tell the server; nothing if it has ended."""
        ...


class Opened(Protocol):
    """The stream that a request has opened, as the channel feeds it."""

    began: bool
    """Something was sent or received after the opening: it cannot simply be sent again."""

    def arrived(self, items: list[bytes]) -> None:
        """`PeerMisbehaved` if they came without credit."""
        ...

    def credited(self, limit: int) -> None:
        """`PeerMisbehaved` if it is more than may be granted."""
        ...

    def ended(self, error: AtollError | None) -> None:
        """Nothing more comes."""
        ...

    def disown(self, error: AtollError) -> None:
        """In a fork: it is the parent's, and over here."""
        ...


class Pending(RawFuture):
    """A request whose reply is not in."""

    __slots__ = (
        "channel",
        "context",
        "end",
        "number",
        "payload",
        "seconds",
        "site",
        "stream",
        "trace",
        "until",
    )

    def __init__(
        self,
        channel: Carrier,
        site: Site,
        payload: bytes,
        until: int,
        trace: int,
        context: bytes | None,
    ) -> None:
        # RawFuture's own, written out: one frame a request, and no `on_cancel` that would make each of them a cycle.
        self._done = False
        self._value = b""
        self._error = None
        self._callbacks = None
        self._on_cancel = None
        self.channel = channel
        self.site = site
        self.payload = payload
        self.until = until
        self.trace = trace
        self.context = context
        self.number = 0
        self.end = 0
        """Where it lies in its ring, with the mark of the epoch (see `Outbox`); 0: nowhere."""
        self.seconds: float | None = None
        self.stream: Opened | None = None

    @property
    def shared(self) -> bool:
        """Whether it takes part in a transaction. What a dead server wrote there the next one would find, so it must not be
        sent again: whoever shared the transaction undoes that first, and asks anew."""
        return self.context is not None and any(self.context[:TRANSACTION])

    def over(self, error: AtollError) -> None:
        """It ends without a reply, and so does the stream that it opened."""
        if self.stream is not None:
            self.stream.ended(error)
        self.fail(error)

    def disown(self, error: AtollError) -> None:
        """In a fork: it is the parent's, and over here. Nobody is called, and no lock taken."""
        self._error, self._done = error, True
        if self.stream is not None:
            self.stream.disown(error)

    def cancel(self) -> None:
        """Nobody waits any more: tell the server."""
        self.channel.withdraw(self)

    async def _wait(self) -> bytes | memoryview:
        channel = self.channel
        if not channel.bound_to_loop and lib.atoll_spin(channel.c):
            channel.drain()
        try:
            if not self.until:
                await self._arrival()
            elif not await within((self.until - clock.monotonic_ns()) / NANOSECONDS, self._arrival):
                self.channel.expire(self)
        except BaseException:
            self.cancel()
            raise
        return self._outcome()

    async def _arrival(self) -> None:
        while not self.done():
            await self.channel.host.wait(self.add_done_callback)

    def result(self, timeout: float | None = None) -> bytes | memoryview:
        """Block the thread until the reply is in; TimeoutError after `timeout` seconds, and then the call goes on."""
        if not self._done:
            self.channel.host.may_block(self.site.spec.label)
            self.channel.wait(
                self, 0 if timeout is None else clock.monotonic_ns() + int(timeout * NANOSECONDS)
            )
            if not self._done:
                raise TimeoutError(
                    f"no reply within {timeout:g} s; the call goes on: ask again, or give it a deadline"
                )
        return self._outcome()

    def outcome(self) -> bytes | memoryview:
        """The reply, or the error raised, of a request that is done."""
        return self._outcome()


async def within(seconds: float, action: Callable[[], Awaitable[None]]) -> bool:
    """Await `action()` for so long at most, in trio or asyncio; False if the time was not enough."""
    if trio.lowlevel.in_trio_run():
        with trio.move_on_after(max(0.0, seconds)) as scope:
            await action()
        return not scope.cancelled_caught
    import asyncio  # whoever comes here runs a loop of it: see `future.running_loop`

    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await action()
    except TimeoutError:
        return False
    return True
