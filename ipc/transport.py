"""The seam between proxies and what carries their calls: a channel, a server in the same process, a store in memory."""

from hashlib import blake2b
from typing import Protocol

from msgspec import Struct

from .buffer import Buffer
from .errors import BadRequest
from .future import Payload, RawReply
from .method import MethodSpec, Service


class Options(Struct, frozen=True, kw_only=True):
    """What goes with one call besides its arguments."""

    deadline: float | None = None
    """Seconds from the call."""
    until: float | None = None
    """CLOCK_MONOTONIC seconds: the deadline inherited from the call that this one is made for."""
    service: Service | None = None
    """None: the method's own."""
    trace: int = 0
    """0: a new one."""
    transaction: bytes | None = None
    key: bytes | None = None
    """12 bytes that stand for this call whenever it is made: what a step of a workflow calls."""
    request: int = 0
    """0: the transport gives it a number; else a repetition of the request with that number."""

    def expiry(self, now: float) -> float | None:
        """When the call ends, in CLOCK_MONOTONIC seconds: the lesser of its own deadline and the inherited
        one."""
        if self.deadline is None:
            return self.until
        own = now + self.deadline
        return own if self.until is None else min(own, self.until)


DEFAULTS = Options()


def keyed(options: Options, method: MethodSpec, payload: bytes) -> bytes | None:
    """The key of a call as it travels: in its last four bytes it says by which arguments the call was made. Zeros:
    capabilities and buffers have other names each time."""
    if options.key is None:
        return None
    return options.key + (bytes(4) if method.carries else blake2b(payload, digest_size=4).digest())


class ChannelStatistics(Struct, frozen=True, kw_only=True):
    """Counters of one channel since it was opened. `waited`: seconds spent waiting for replies."""

    calls: int = 0
    casts: int = 0
    streams: int = 0
    errors: int = 0
    pending: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    wakes: int = 0
    waited: float = 0.0


class RawStream(Protocol):
    """One open stream or upload as a transport carries it, in encoded items.

    `receive` gives the next items, at least one, or None at the end; it raises what the server raised. Of an
    upload the one thing received, after `finish`, is the reply. `send` waits for credit. `cancel` may be
    called at any time, more than once, and after the end.
    """

    def receive_now(self) -> list[bytes] | None: ...
    async def receive(self) -> list[bytes] | None: ...
    def send_now(self, item: bytes) -> None: ...
    async def send(self, item: bytes) -> None: ...
    def finish(self) -> None: ...
    def cancel(self) -> None: ...


class Translator(Protocol):
    """What a transport does for messages that carry capabilities or buffers; called while one is encoded or
    decoded. A capability is an interface and the transport to the object."""

    def send_capability(self, interface: type, transport: "Transport") -> int:
        """Have it transferred to the peer; the token is what the peer was or will be told."""
        ...

    def receive_capability(self, interface: type, token: int) -> "Transport | None":
        """What was delivered under the token for that interface; None if nothing was."""
        ...

    def send_buffer(self, buffer: Buffer) -> int:
        """Have it shared with the peer."""
        ...

    def receive_buffer(self, token: int) -> Buffer | None:
        """What was shared under the token; None if nothing was."""
        ...


class Transport(Protocol):
    """One capability as a client holds it. Remote errors are raised as the exceptions they are."""

    @property
    def translator(self) -> Translator | None:
        """For messages that carry capabilities; None if it carries none."""
        ...

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload: ...
    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload: ...
    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply: ...
    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None: ...
    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream: ...
    def statistics(self) -> ChannelStatistics: ...


class Layer:
    """A transport over another one, of which it sees what goes through."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner


class NoCapabilities:
    """The translator of a transport that carries neither capabilities nor buffers."""

    def __init__(self, why: str) -> None:
        self._why = why

    def _refuse(self) -> int:
        raise BadRequest("a capability or buffer in a message", "a transport that carries it", self._why)

    def send_capability(self, interface: type, transport: Transport) -> int:
        return self._refuse()

    def receive_capability(self, interface: type, token: int) -> Transport | None:
        return None

    def send_buffer(self, buffer: Buffer) -> int:
        return self._refuse()

    def receive_buffer(self, token: int) -> Buffer | None:
        return None
