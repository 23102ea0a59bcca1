"""A server called through its proxies in one trio loop, each proxy with a badge, rights and a channel number
of its own.

The loop of it: after every call `idle` is driven until nothing waits, as a receive loop drives it when its
rings are drained.
"""

import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from atoll.ipc.context import Call, Fields, SystemClock, in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, NotAllowed
from atoll.ipc.future import RawFuture
from atoll.ipc.interface import Interface
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import ChannelStatistics, Options, bind
from atoll.ipc.serve import Endpoint

I = TypeVar("I", bound=Interface)  # noqa: E741


class Node:
    """One served endpoint; `batch()` holds `idle` back so that calls form a group."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.held = False
        self.requests = 0

    def proxy(self, interface: type[I], badge: int, rights: set[str], client: int = 1) -> I:
        return bind(interface, Direct(self, badge, frozenset(rights), client))

    def drained(self) -> None:
        idle = getattr(self.endpoint.server, "idle", None)
        while not self.held and idle is not None and idle() is not None:
            pass

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        self.held = True
        yield
        self.held = False
        self.drained()


class Direct:
    translator = None

    def __init__(self, node: Node, badge: int, rights: frozenset[str], client: int) -> None:
        self._node = node
        self._badge = badge
        self._rights = rights
        self._client = client

    def _call(self, method: MethodSpec, options: Options) -> Call:
        if method.right not in self._rights:
            raise NotAllowed(method.label, method.right, tuple(sorted(self._rights)))
        self._node.requests += 1
        fields = Fields(
            method=method.label,
            badge=self._badge,
            rights=self._rights,
            transaction=options.transaction,
            client=self._client,
            request=options.request or self._node.requests,
            service=options.service or method.service,
        )
        made = Call(fields, SystemClock())
        made.thread = -1
        return made

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawFuture:
        future = RawFuture()
        try:
            with in_hand(self._call(method, options)):
                reply: Any = self._node.endpoint.by_number[method.number].run(memoryview(payload))
        except AtollError as error:
            future.fail(error)
            return future
        if isinstance(reply, Deferred):
            reply.react(future.complete, future.fail)
        elif isinstance(reply, bytes):
            future.complete(reply)
        else:
            trio.lowlevel.spawn_system_task(self._run, self._call(method, options), reply, future)
        self._node.drained()
        return future

    async def _run(self, call: Call, reply: Any, future: RawFuture) -> None:
        try:
            with in_hand(call):
                future.complete(await reply)
        except AtollError as error:
            future.fail(error)

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        await trio.lowlevel.checkpoint()
        return await self.start(method, payload, options)

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        self.start(method, payload, options)

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        return self.start(method, payload, options).result(0)

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> "DirectStream":
        with in_hand(self._call(method, options)):
            return DirectStream(
                self._call(method, options),
                self._node.endpoint.by_number[method.number].run(memoryview(payload)),
            )

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics()


class DirectStream:
    def __init__(self, call: Call, source: Any) -> None:
        self._source = source
        self._call = call
        self._send, self._receive = trio.open_memory_channel[Any](math.inf)
        self._scope = trio.CancelScope()
        assert threading.current_thread() is threading.main_thread()
        trio.lowlevel.spawn_system_task(self._run)

    async def _run(self) -> None:
        with self._scope, self._send, in_hand(self._call):
            try:
                async for item in self._source:
                    self._send.send_nowait(item)
            except AtollError as error:
                self._send.send_nowait(error)
            finally:
                with trio.CancelScope(shield=True):
                    await self._source.aclose()

    async def receive(self) -> list[bytes] | None:
        try:
            item = await self._receive.receive()
        except trio.EndOfChannel:
            return None
        if isinstance(item, AtollError):
            raise item
        return [item]

    def cancel(self) -> None:
        self._scope.cancel()
