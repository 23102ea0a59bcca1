"""A server and its callers in one process: the same proxies, dispatch and errors, and no kernel.

A `Host` runs one server on a trio loop in a thread of its own, since a server is single-threaded by contract.
Callers may be threads, trio or asyncio tasks, or handlers of another host. Requests are encoded, delivered in
order of arrival and answered as over a channel; errors travel in their encoded form, so that what a test sees
is what a node gives.
"""

import itertools
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import trio

from . import context, errors
from .buffer import Buffer
from .context import Call, Clock, Fields, SystemClock
from .deferred import Deferred
from .dispatch import as_reply, internal
from .errors import (
    Aborted,
    AtollError,
    DeadlineExceeded,
    NotAllowed,
    NotFound,
    Overloaded,
    PeerDied,
    TooLarge,
)
from .future import Payload, RawFuture
from .interface import Interface, rights
from .limits import MAX_PAYLOAD
from .local_stream import LocalStream
from .method import LANES, MethodSpec, Service
from .serve import Endpoint, Serves, bind
from .streams import RECORD_ITEMS
from .transport import ChannelStatistics, Options, Transport, keyed

R = TypeVar("R")

IN_HAND = 1024
"""Calls that a host has in hand at most; the next one is `Overloaded`."""

_numbers = itertools.count(1)


def _dearness(service: Service) -> int:
    return LANES[service]


class Exchange:
    """Tokens of what is passed in messages to and from one host: see `transport.Translator`."""

    def __init__(self) -> None:
        self._capabilities: dict[int, tuple[type, Transport]] = {}
        self._buffers: dict[int, Buffer] = {}
        self._tokens: dict[tuple[int, ...], int] = {}

    def _token(self, *named: object) -> int:
        """By identity: whoever asks for one keeps alive what it names."""
        return self._tokens.setdefault(tuple(map(id, named)), len(self._tokens) + 1)

    def send_capability(self, interface: type, transport: Transport) -> int:
        token = self._token(interface, transport)
        self._capabilities[token] = interface, transport
        return token

    def receive_capability(self, interface: type, token: int) -> Transport | None:
        given, transport = self._capabilities.get(token, (type(None), None))
        return transport if issubclass(given, interface) else None

    def send_buffer(self, buffer: Buffer) -> int:
        token = self._token(buffer)
        self._buffers[token] = buffer
        return token

    def receive_buffer(self, token: int) -> Buffer | None:
        found = self._buffers.get(token)
        if found is None:
            return None
        return found if found.mode == found.passed else Buffer(found.view, found.passed, found.handle)


class Request:
    """One message to a host. The fields below the line are touched only on the host's thread."""

    __slots__ = (
        "call",
        "expires",
        "fail",
        "options",
        "payload",
        "reply",
        "scope",
        "spec",
        "stream",
        "transport",
    )

    def __init__(
        self,
        transport: "InProcess",
        spec: MethodSpec,
        payload: bytes,
        options: Options,
        reply: Callable[[bytes], None],
        fail: Callable[[AtollError], None],
        stream: "LocalStream | None" = None,
    ) -> None:
        self.transport = transport
        self.spec = spec
        self.payload = payload
        self.options = context.inherited(options, spec)
        self.expires = self.options.expiry(transport.host.clock.monotonic())
        self.reply = reply
        self.fail = fail
        self.stream = stream
        # ---
        self.scope: trio.CancelScope | None = None
        self.call: Call | None = None

    def late(self) -> DeadlineExceeded:
        own = self.options.deadline
        inherited = self.options.until
        ours = own is not None and (inherited is None or self.expires != inherited)
        return DeadlineExceeded(self.spec.label, own if ours else None)


class Host:
    """One server instance on a loop of its own. `run` is that loop; everything else may be called from any
    thread."""

    def __init__(
        self,
        server: type[Serves[Any]],
        needs: Mapping[str, object],
        *,
        clock: Clock | None = None,
        seed: int | None = None,
        in_hand: int = IN_HAND,
        version: str = "",
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`before`: what has to have begun on the same loop before the server does."""
        self._before = before
        self.exchange = Exchange()
        self.endpoint: Endpoint = bind(server, needs, self.exchange, version)
        self.clock: Clock = clock or SystemClock()
        self.name = server.__name__
        self._seed = seed
        self._limit = in_hand
        # Reentrant: an object that is collected meanwhile may give up a call here.
        self._lock = threading.RLock()
        self._arrived: deque[Callable[[], None]] = deque()
        self._token: trio.lowlevel.TrioToken | None = None
        self._dead = False
        # Touched on the loop only.
        self._killed = False
        self._delivered = itertools.count()
        self._nursery: trio.Nursery | None = None
        self._hands: dict[int, Request] = {}

    # any thread
    # ------------------------------------------------------------------------------------------------------

    def submit(self, work: Callable[[], None]) -> bool:
        """Have it done on the loop, after what was submitted before. False: the host has ended."""
        with self._lock:
            if self._dead or self._token is None:
                return False
            self._arrived.append(work)
            try:
                self._token.run_sync_soon(self._drain, idempotent=True)
            except trio.RunFinishedError:
                return False
        return True

    def wait_for(self, function: Callable[..., Awaitable[R]], *given: object) -> R:
        """Have a task of the loop's run it, and wait for what it gives."""
        return trio.from_thread.run(function, *given, trio_token=self._token)

    def send(self, request: Request) -> None:
        """Deliver a request; if the host has ended it fails as one that was never taken."""
        if not self.submit(lambda: self._deliver(request)):
            request.fail(PeerDied(request.spec.label, outcome_unknown=False))

    def cancel(self, request: Request) -> None:
        """Nobody waits for it any more."""

        def stop() -> None:
            if request.scope is not None:
                request.scope.cancel()

        self.submit(stop)

    def kill(self) -> None:
        """End it as a crash would: nothing further is answered, what is in hand ends with `PeerDied`."""
        self.submit(self._die)

    # the loop
    # --------------------------------------------------------------------------------------------------------

    async def run(self, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Start the server, serve until cancelled or killed, stop it."""
        server = self.endpoint.server
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._before is not None:
                    await self._before()
                for ring in self.endpoint.rings:
                    await nursery.start(ring.run)
                await server.start()
                for need in vars(server).values():
                    if getattr(type(need), "__atoll_need__", None) == "keyspace":
                        await nursery.start(need.follow)
                workflows = self.endpoint.workflows
                if workflows is not None:
                    await nursery.start(workflows.run)
                    workflows.go_on()
                self._token = trio.lowlevel.current_trio_token()
                task_status.started()
                if self.endpoint.runs:
                    nursery.start_soon(server.run)
                try:
                    await trio.sleep_forever()
                finally:
                    self._end_all()
            if not self._killed:
                await server.stop()
        finally:
            with self._lock:
                self._dead = True

    def close(self) -> None:
        """On the loop: cancel what runs, then the server's `stop()`."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._arrived or self._dead:
                    break
                work = self._arrived.popleft()
            try:
                work()
            except SystemExit:
                self._die()
                return
        self._idle()

    def _idle(self) -> None:
        """Tell a server that all was taken, as the receive loop does; and again when it asks for it."""
        idle = getattr(self.endpoint.server, "idle", None)
        if idle is None or self._dead:
            return
        try:
            again = idle()
        except SystemExit:
            self._die()
            return
        if again is not None and self._nursery is not None:
            self._nursery.start_soon(self._idle_after, again)

    async def _idle_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._idle()

    def _die(self) -> None:
        self._killed = True
        self._end_all()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _end_all(self) -> None:
        with self._lock:
            self._dead = True
        for request in list(self._hands.values()):
            request.fail(PeerDied(request.spec.label))
        self._hands.clear()
        while self._arrived:
            # What was never taken fails through its own delivery, which sees that the host has ended.
            self._arrived.popleft()()

    # one request
    # -----------------------------------------------------------------------------------------------------

    def _deliver(self, request: Request) -> None:
        spec, transport = request.spec, request.transport
        entry = self.endpoint.by_number.get(spec.number)
        fault: AtollError | None = None
        if self._dead:
            fault = PeerDied(spec.label, outcome_unknown=False)
        elif entry is None:
            fault = NotFound("method", spec.label)
        elif spec.right not in transport.rights:
            fault = NotAllowed(spec.label, spec.right, tuple(sorted(transport.rights)))
        elif request.expires is not None and request.expires <= self.clock.monotonic():
            fault = request.late()
        elif len(self._hands) >= self._limit:
            fault = Overloaded(spec.label)
        if fault is not None or entry is None or self._nursery is None:
            request.fail(fault or PeerDied(spec.label, outcome_unknown=False))
            return
        self._hands[id(request)] = request
        request.call = call = Call(self._fields(request), self.clock)
        stream = request.stream
        try:
            with context.in_hand(call):
                view = memoryview(request.payload)
                outcome = entry.run(view, stream) if stream and spec.kind == "upload" else entry.run(view)
        except AtollError as error:
            self._fail(request, error)
            return
        except Exception as error:  # of an argument's own type, say: as in a server process
            self._fail(request, internal(spec, error))
            return
        if isinstance(outcome, bytes):
            self._complete(request, outcome)
            return
        # Made here, not by the task: a caller may give up before the task has its first turn.
        request.scope = scope = self._scope(request)
        if isinstance(outcome, Deferred):
            if request.expires is not None:
                self._nursery.start_soon(self._expire, request, scope)
            outcome.react(
                lambda data: self._complete(request, data),
                lambda error: self._fail(request, as_reply(spec, error)),
            )
        else:
            self._nursery.start_soon(self._task, request, scope, outcome)

    def _fields(self, request: Request) -> Fields:
        transport, options = request.transport, request.options
        number = options.request or next(_numbers)
        service = max(options.service or request.spec.service, transport.service, key=_dearness)
        return Fields(
            method=request.spec.label,
            badge=transport.badge,
            rights=transport.rights,
            service=service,
            deadline=request.expires,
            trace=options.trace or context.new_trace(),
            transaction=options.transaction,
            key=keyed(options, request.spec, request.payload),
            client=transport.number,
            request=number,
            seed=None if self._seed is None else f"{self._seed}/{next(self._delivered)}".encode(),
        )

    def _complete(self, request: Request, data: bytes) -> None:
        if self._hands.pop(id(request), None) is not None:
            request.reply(data)

    def _fail(self, request: Request, error: AtollError) -> None:
        if self._hands.pop(id(request), None) is not None:
            request.fail(error)

    def _scope(self, request: Request) -> trio.CancelScope:
        scope = trio.CancelScope()
        if request.expires is not None:
            # Looked at before trio's clock, as in a server process: who loses the core in between ends it late, not early.
            left = request.expires - self.clock.monotonic()
            scope.deadline = trio.current_time() + left
        return scope

    async def _expire(self, request: Request, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep_forever()
        self._fail(request, request.late())

    async def _task(self, request: Request, scope: trio.CancelScope, work: Any) -> None:
        with context.in_hand(request.call), scope:
            try:
                if request.spec.kind == "stream":
                    await self._pump(request, work)
                else:
                    self._complete(request, await work)
            except AtollError as error:
                self._fail(request, error)
            except SystemExit:
                self._die()
        if scope.cancelled_caught:
            now = self.clock.monotonic()
            late = request.expires is not None and request.expires <= now
            self._fail(
                request, request.late() if late else Aborted(request.spec.label, "its caller cancelled it")
            )
        self._idle()

    async def _pump(self, request: Request, source: Any) -> None:
        stream = request.stream
        assert stream is not None
        if hasattr(source, "__aiter__"):
            async with aclosing(source):
                async for item in source:
                    await stream.deliver([item])
        else:
            try:
                failure = None
                while failure is None:
                    items, failure = _taken(source)
                    if not items:
                        break
                    await stream.deliver(items)
                    await trio.lowlevel.checkpoint()
                if failure is not None:
                    raise failure
            finally:
                source.close()
        if self._hands.pop(id(request), None) is not None:
            stream.end(None)


def _taken(source: Iterator[bytes]) -> tuple[list[bytes], AtollError | None]:
    """A record's items of a plain generator; and what it raised behind them."""
    items: list[bytes] = []
    try:
        items.extend(itertools.islice(source, RECORD_ITEMS))
    except AtollError as error:
        return items, error
    return items, None


class InProcess:
    """A capability on a host's server: see `atoll.ipc.transport.Transport`."""

    def __init__(
        self, host: Host, interface: type[Interface], *, badge: int = 0, held: frozenset[str] | None = None
    ) -> None:
        self.host = host
        self.interface = interface
        self.badge = badge
        self.rights = frozenset(rights(interface)) if held is None else held
        self.service: Service = "control"
        self.number = next(_numbers)
        self._calls = self._casts = self._streams = self._errors = self._pending = 0
        self._sent = self._received = 0

    @property
    def translator(self) -> Exchange:
        return self.host.exchange

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawFuture:
        self._calls += 1
        self._pending += 1
        future = RawFuture(lambda: self.host.cancel(request))

        def reply(data: bytes) -> None:
            self._pending -= 1
            self._received += len(data)
            future.complete(data)

        def fail(error: AtollError) -> None:
            self._pending -= 1
            self._errors += 1
            future.fail(errors.decode(errors.encode(error), method))

        request = Request(self, method, self._checked(method, payload), options, reply, fail)
        self.host.send(request)
        return future

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        context.forbid_blocking(method.label)
        return self.start(method, payload, options).result()

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        return await self.start(method, payload, options)

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        self._casts += 1
        request = Request(
            self, method, self._checked(method, payload), options, lambda data: None, lambda error: None
        )
        self.host.send(request)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> LocalStream:
        self._streams += 1
        stream = LocalStream(method, lambda: self.host.cancel(request))
        request = Request(
            self, method, self._checked(method, payload), options, stream.complete, stream.end, stream
        )
        self.host.send(request)
        return stream

    def _checked(self, method: MethodSpec, payload: bytes) -> bytes:
        if len(payload) > MAX_PAYLOAD:
            raise TooLarge(f"a request for {method.label}", len(payload), MAX_PAYLOAD)
        self._sent += len(payload)
        return payload

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            calls=self._calls,
            casts=self._casts,
            streams=self._streams,
            errors=self._errors,
            pending=self._pending,
            bytes_sent=self._sent,
            bytes_received=self._received,
        )


class HostThread:
    """Runs a host on a trio loop in a thread of its own. `close` waits until the server has stopped."""

    def __init__(self, host: Host, clock: trio.abc.Clock | None = None) -> None:
        self.host = host
        self._clock = clock
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"atoll {host.name}", daemon=True)

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=self._clock)
        except BaseException as error:
            self._failure = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.host.run)
            self._started.set()

    def start(self) -> None:
        """Returns when the server serves; raises what its `start()` raised."""
        self._thread.start()
        self._started.wait()
        self._reraise()

    def kill(self) -> None:
        """End the server as a crash would; on return nothing of it runs. Not from within the server."""
        self.host.kill()
        self._thread.join()

    def close(self) -> None:
        """Stop the server; raises what its `run()` or `stop()` raised."""
        self.host.submit(self.host.close)
        self._thread.join()
        self._reraise()

    def _reraise(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
                failure = failure.exceptions[0]
            raise failure
