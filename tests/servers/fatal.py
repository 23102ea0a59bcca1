"""A server that dies at a chosen step: at a call of another one, before it or when it was done."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from atoll.ipc.errors import AtollError, PeerDied
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import Payload, RawFuture, RawReply
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import Options
from atoll.ipc.transport import RawStream


class Countdown:
    """Shared by the transports of a server: at step `at` it dies, before (or `after`) what it asked for was done."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after
        self.kill: Callable[[], None] = lambda: None
        self.dead = False

    def over(self) -> bool:
        self.left -= 1
        return self.left == 0


class Fatal(FaultyTransport):
    """A server's way to another one, on which it dies."""

    def __init__(self, inner: Any, countdown: Countdown) -> None:
        super().__init__(inner)
        self._countdown = countdown

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        if self._countdown.dead:
            raise PeerDied(method.label)
        if not self._countdown.over():
            return await self.inner.call(method, payload, options)
        if self._countdown.after:
            with suppress(AtollError):  # what it came to nobody lives to hear
                await self.inner.call(method, payload, options)
        self._die()
        killed = trio.Event()
        trio.lowlevel.current_trio_token().run_sync_soon(killed.set)
        await (
            killed.wait()
        )  # cancelled; but for who shields this, who has to end all the same, and reaches nobody
        raise PeerDied(method.label)

    def _die(self) -> None:
        self._countdown.kill()
        self._countdown.dead = True

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        if self._countdown.dead:
            return RawFuture()
        if not self._countdown.over():
            return self.inner.start(method, payload, options)
        if self._countdown.after:
            with suppress(AtollError):
                self.inner.start(method, payload, options).result()
        self._die()
        return RawFuture()

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        if not self._countdown.dead and self._countdown.over():
            self._die()
        return self.inner.open(method, payload, options)
