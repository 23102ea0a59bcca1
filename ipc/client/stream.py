"""A stream or an upload over a channel: credits and queues on the client's side.

The receiver of items grants credit, the sender spends one an item and waits when it has none, so a slow reader holds a
fast writer at a bounded distance. Credit is granted back in batches of half the window: one record for many items.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import trio

from atoll.ipc.errors import Aborted, AtollError
from atoll.native import Kind

if TYPE_CHECKING:
    from .pending import Pending

WINDOW = 256
"""Items that may be under way. Both sides know it; the first window is granted by opening the stream."""
RETRY = 0.0002
"""Seconds until a full ring is tried again: nobody says when there is room, as somebody says when there is credit."""

_encode = msgspec.msgpack.Encoder().encode


class ChannelStream:
    """See `atoll.ipc.proxy.RawStream`."""

    def __init__(self, pending: "Pending") -> None:
        self.pending = pending
        self.upload = pending.site.spec.kind == "upload"
        self.began = False
        """Something was sent or received after the opening: it cannot simply be sent again."""
        self._items: deque[list[bytes]] = deque()
        # Each count only rises and has one writer: threads of a client receive for each other.
        self._received = 0
        """Items that came. Whoever receives writes it."""
        self._granted = 0
        """Items granted back. More than a window above it never come, or the server sends without credit."""
        self._taken = 0
        """Items taken and not yet granted back."""
        self._credited = WINDOW
        """Items that may be sent in all. Whoever receives writes it."""
        self._sent = 0
        self._over = False
        self._error: AtollError | None = None
        self._waiters: list[Callable[[], None]] = []

    # called by the channel ----------------------------------------------------------------------------------------

    def arrived(self, items: list[bytes]) -> None:
        self.began = True
        self._received += len(items)
        if self._received - self._granted > WINDOW:
            self.pending.channel.misbehaved("items without credit")
            return
        self._items.append(items)
        self._wake()

    def credited(self, count: int) -> None:
        self._credited += max(0, min(count, WINDOW))
        self._wake()

    def ended(self, error: AtollError | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()

    # the client's side --------------------------------------------------------------------------------------------

    def _next(self) -> list[bytes] | None:
        items = self._items.popleft()
        if not self.upload:
            self._taken += len(items)
            self._grant()
        return items

    def _grant(self) -> bool:
        """Grant back what was taken, if it is enough. False: the ring has no room for it, so it is still owed."""
        if self._taken < WINDOW // 2 or self._over:
            return True
        granted = self._granted
        self._granted += self._taken  # before it is sent: what the server sends for it may come at once
        if not self.pending.channel.control(self.pending, Kind.CREDIT, _encode(self._taken)):
            self._granted = granted
            return False
        self._taken = 0
        return True

    def _end(self) -> None:
        if self._error is not None:
            raise self._error

    def receive_now(self) -> list[bytes] | None:
        while not self._items:
            if self._over:
                self._end()
                return None
            if self._grant():
                self._block()
            else:
                self._room_now()
        return self._next()

    async def receive(self) -> list[bytes] | None:
        while not self._items:
            if self._over:
                self._end()
                return None
            if self._grant():
                await self._change()
            else:
                await _room()
        return self._next()

    def send_now(self, item: bytes) -> None:
        while not self._try_send(item):
            if self._sent >= self._credited:
                self._block()
            else:
                self._room_now()

    async def send(self, item: bytes) -> None:
        while not self._try_send(item):
            if self._sent >= self._credited:
                await self._change()
            else:
                await _room()

    def _try_send(self, item: bytes) -> bool:
        if self._over:
            self._end()
            raise Aborted(self.pending.site.spec.label, "it has ended")
        if self._sent >= self._credited:
            return False
        self.began = True
        if not self.pending.channel.control(self.pending, Kind.ITEM, _encode([item])):
            return False
        self._sent += 1
        return True

    def finish(self) -> None:
        self.began = True
        while not self._over and not self.pending.channel.control(self.pending, Kind.END):
            self._room_now()

    def _room_now(self) -> None:
        self.pending.channel.drain()
        time.sleep(RETRY)

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self.pending.abandon()
            self._wake()

    def _state(self) -> tuple[int, int, bool]:
        return len(self._items), self._credited, self._over

    def _watch(self) -> "tuple[Callable[[], bool], Callable[[Callable[[], None]], None]]":
        """A predicate that turns true once anything of this stream has changed, and how to be told of it."""
        before = self._state()

        def changed() -> bool:
            return self._state() != before

        def subscribe(notify: Callable[[], None]) -> None:
            self._waiters.append(notify)
            if changed():
                notify()

        return changed, subscribe

    def _block(self) -> None:
        self.pending.channel.host.may_block(self.pending.site.spec.label)
        self.pending.channel.block(self.pending, *self._watch())

    async def _change(self) -> None:
        changed, subscribe = self._watch()
        while not changed():
            await self.pending.channel.host.wait(subscribe)


async def _room() -> None:
    if trio.lowlevel.in_trio_run():
        await trio.sleep(RETRY)
    else:
        await asyncio.sleep(RETRY)
