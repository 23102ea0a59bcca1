"""A server that dies at a chosen step: at a call of another one, before it or when it was done."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from atoll.ipc.errors import AtollError
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

    def over(self) -> bool:
        self.left -= 1
        return self.left == 0


class Fatal(FaultyTransport):
    """A server's way to another one, on which it dies."""

    def __init__(self, inner: Any, countdown: Countdown) -> None:
        super().__init__(inner)
        self._countdown = countdown

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        if not self._countdown.over():
            return await self.inner.call(method, payload, options)
        if self._countdown.after:
            with suppress(AtollError):  # what it came to nobody lives to hear
                await self.inner.call(method, payload, options)
        self._countdown.kill()
        await trio.sleep_forever()
        raise AssertionError

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        if not self._countdown.over():
            return self.inner.start(method, payload, options)
        if self._countdown.after:
            with suppress(AtollError):
                self.inner.start(method, payload, options).result()
        self._countdown.kill()
        return RawFuture()

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        if self._countdown.over():
            self._countdown.kill()
        return self.inner.open(method, payload, options)
