"""A store in this process for tests of servers: real keyspaces, over memory, on the caller's own thread.

It is the node's own store server over its memory engine, not a second model of it: a copy of its rules would
be one more thing to keep equal. It is found by its name when it is first asked for, so that the SDK still
imports no server. Every call is served where it is made, before it returns: nothing runs beside the test, and
a seed decides everything.
"""

import importlib
import inspect
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

import trio

from .bound import bind
from .context import Call, Clock, Fields, SystemClock, in_hand
from .deferred import Deferred
from .errors import AtollError, BadRequest, NotAllowed
from .future import Payload, RawFuture
from .interface import rights
from .keyspace import Keyspace
from .method import MethodSpec
from .serve import Endpoint
from .serve import bind as bind_server
from .system.state import State
from .transport import ChannelStatistics, Options, Translator

T = TypeVar("T")

STORE: Final = "atoll.servers.state"
_ALL: Final = frozenset(rights(State))


class MemoryStore:
    """A store of its own; servers whose keyspaces come from one may share transactions."""

    def __init__(self, clock: Clock | None = None) -> None:
        settings = importlib.import_module(f"{STORE}.opening").Settings
        server = importlib.import_module(f"{STORE}.server").Server
        self.clock: Clock = SystemClock() if clock is None else clock
        self.endpoint: Endpoint = bind_server(server, {"config": settings(engine="memory")})
        _finish_at_once(self.endpoint.server.start())
        self.requests = 0
        self._channels = 0

    def state(self, badge: int = 0, held: frozenset[str] = _ALL) -> State:
        """A capability on the store, over a channel of its own; badge 0 is the kernel's."""
        self._channels += 1
        return bind(State, Here(self, badge, held, self._channels))

    def keyspace(self, kind: type[T], name: str = "rows") -> Keyspace[T]:
        """The keyspace of that name, made if need be, with rows of type `kind`."""
        badge = self.state().make_keyspace.start(name).result()
        return Keyspace(self.state(badge), kind)


def _finish_at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that awaits nothing which is not there."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("the store's start waits for something: it cannot be started outside a loop")


class Home(Protocol):
    """A server that is served where it is called."""

    endpoint: Endpoint
    clock: Clock
    requests: int


class Here:
    """The transport: serves on the thread that calls."""

    def __init__(self, store: Home, badge: int, held: frozenset[str], channel: int) -> None:
        self._store = store
        self._badge = badge
        self._held = held
        self._channel = channel

    @property
    def translator(self) -> Translator | None:
        return None

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawFuture:
        try:
            with in_hand(self._call(method, options)):
                reply = self._store.endpoint.by_number[method.number].run(memoryview(payload))
        except AtollError as error:
            future = RawFuture()
            future.fail(error)
            return future
        return _answered(reply)

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        # A caller that awaits must let others run, as it would over a channel.
        await trio.lowlevel.checkpoint()
        with in_hand(call := self._call(method, options)):
            reply = self._store.endpoint.by_number[method.number].run(memoryview(payload))
        if inspect.iscoroutine(reply):
            with in_hand(call):
                answer: Payload = await reply
            return answer
        return await _answered(reply)

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        return self.start(method, payload, options).result()

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        self.start(method, payload, options)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> "_HereStream":
        call = self._call(method, options)
        with in_hand(call):
            return _HereStream(call, self._store.endpoint.by_number[method.number].run(memoryview(payload)))

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(calls=self._store.requests)

    def _call(self, method: MethodSpec, options: Options) -> Call:
        if method.right not in self._held:
            raise NotAllowed(method.label, method.right, tuple(sorted(self._held)))
        self._store.requests += 1
        fields = Fields(
            method=method.label,
            badge=self._badge,
            rights=self._held,
            trace=options.trace,
            transaction=options.transaction,
            client=self._channel,
            request=options.request or self._store.requests,
            service=options.service or method.service,
        )
        return Call(fields, self._store.clock)


def _answered(reply: Any) -> RawFuture:
    future = RawFuture()
    if isinstance(reply, Deferred):
        reply.react(future.complete, future.fail)
    else:
        future.complete(reply)
    return future


class _HereStream:
    """A watch that runs in the task that reads it."""

    def __init__(self, call: Call, source: Any) -> None:
        self._call = call
        self._source = source

    async def receive(self) -> list[bytes] | None:
        with in_hand(self._call):
            try:
                return [await anext(self._source)]
            except StopAsyncIteration:
                return None

    def receive_now(self) -> list[bytes] | None:
        raise BadRequest("a watch of a store in memory", "an awaited stream", "a blocking one")

    def send_now(self, item: bytes) -> None:
        raise BadRequest("a watch", "no items from the client", "one")

    async def send(self, item: bytes) -> None:
        self.send_now(item)

    def finish(self) -> None:
        """There is nothing to send."""

    def cancel(self) -> None:
        """Ends the generator, which awaits nothing to end; one that is being read ends with the task that
        reads it."""
        if not self._source.ag_running:
            with in_hand(self._call):
                _finish_at_once(self._source.aclose())
