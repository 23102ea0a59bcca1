"""A reply that a client waits for: from a thread, from trio or from asyncio.

`RawFuture` carries the encoded reply and is completed by a transport from any thread; the first completion
counts and later ones are ignored, since a deadline, a cancellation and a reply may race. `Future` is its
typed face.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import trio

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R")

Payload = bytes | memoryview


class RawReply(Protocol):
    """What a transport's `start` gives back."""

    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Payload: ...
    def cancel(self) -> None: ...
    def add_done_callback(self, callback: Callable[[], None]) -> None: ...
    def __await__(self) -> Generator[Any, Any, Payload]: ...


_settling = threading.RLock()
"""Between "is it done?" and what follows from the answer. One for all futures: it is held for a few assignments, and one
each would cost more to make than the rest of a future. Reentrant: an object that is collected meanwhile may end others."""


def _forked() -> None:
    """In a fork the thread that had it may be one that is not there any more."""
    global _settling
    _settling = threading.RLock()


os.register_at_fork(after_in_child=_forked)


class RawFuture:
    """An encoded reply to come. `on_cancel` tells the other side that nobody waits any more."""

    __slots__ = ("_callbacks", "_done", "_error", "_on_cancel", "_value")

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self._done = False
        self._value: Payload = b""
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] | None = None
        self._on_cancel = on_cancel

    def complete(self, value: Payload) -> None:
        """Give the reply; ignored if it is done."""
        self._finish(value, None)

    def fail(self, error: BaseException) -> None:
        """End with an error; ignored if it is done."""
        self._finish(b"", error)

    def _finish(self, value: Payload, error: BaseException | None) -> None:
        with _settling:
            if self._done:
                return
            self._value, self._error, self._done = value, error, True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._done

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call it when done, on the thread that completes; at once if that is past."""
        with _settling:
            if not self._done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback()

    def cancel(self) -> None:
        """Nobody waits any more: the other side may stop. A reply that comes all the same is dropped."""
        if not self._done and self._on_cancel is not None:
            self._on_cancel()

    def result(self, timeout: float | None = None) -> Payload:
        """Block the thread until the reply is there; TimeoutError after `timeout` seconds."""
        if not self._done:
            arrived = threading.Event()
            self.add_done_callback(arrived.set)
            if not arrived.wait(timeout):
                raise TimeoutError(
                    f"no reply within {timeout:g} s; the call goes on: ask again, or give it a deadline"
                )
        return self._outcome()

    def _outcome(self) -> Payload:
        if self._error is not None:
            raise self._error
        return self._value

    def __await__(self) -> Generator[Any, Any, Payload]:
        return self._wait().__await__()

    async def _wait(self) -> Payload:
        if not self._done:
            try:
                await wait_for(self.add_done_callback)
            except BaseException:
                self.cancel()
                raise
        return self._outcome()


async def wait_for(subscribe: Callable[[Callable[[], None]], None]) -> None:
    """Suspend the running task, of trio or of asyncio, until the callback handed to `subscribe` is called, by
    any thread."""
    if trio.lowlevel.in_trio_run():
        await _wait_in_trio(subscribe)
    else:
        await _wait_in_asyncio(subscribe)


async def _wait_in_trio(subscribe: Callable[[Callable[[], None]], None]) -> None:
    event, token = trio.Event(), trio.lowlevel.current_trio_token()
    home = threading.get_ident()

    def notify() -> None:
        if threading.get_ident() == home:
            event.set()
            return
        try:
            token.run_sync_soon(event.set)
        except trio.RunFinishedError:
            return  # the loop that waited has ended, and with it the wait

    subscribe(notify)
    await event.wait()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that this thread is in. asyncio is not imported for the answer: to load it is a sixth of what this
    package takes, servers and commands run in trio, and whoever runs a loop of asyncio has it."""
    loaded = sys.modules.get("asyncio")
    if loaded is None:
        return None
    try:
        return loaded.get_running_loop()  # type: ignore[no-any-return]
    except RuntimeError:
        return None


async def _wait_in_asyncio(subscribe: Callable[[Callable[[], None]], None]) -> None:
    loop = running_loop()
    assert loop is not None, "it is awaited in a task, and not in one of trio"
    arrived = loop.create_future()

    def settle() -> None:
        if not arrived.done():
            arrived.set_result(None)

    home = threading.get_ident()

    def notify() -> None:
        if threading.get_ident() == home:
            settle()
        else:
            with contextlib.suppress(RuntimeError):  # it is closed, and with it the wait has ended
                loop.call_soon_threadsafe(settle)

    subscribe(notify)
    await arrived


class Future(Generic[R]):
    """The typed result of a call that was started: `p.add.start("x")`."""

    __slots__ = ("_decode", "raw")

    def __init__(self, raw: RawReply, decode: Callable[[Payload], R]) -> None:
        self.raw = raw
        self._decode = decode

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self.raw.done()

    def result(self, timeout: float | None = None) -> R:
        """Block until the reply is there. Raises what the call raises; TimeoutError after `timeout` seconds,
        and then the call goes on."""
        return self._decode(self.raw.result(timeout))

    def cancel(self) -> None:
        """Tell the server that nobody waits any more; an async handler is cancelled."""
        self.raw.cancel()

    def __await__(self) -> Generator[Any, Any, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        return self._decode(await self.raw)
