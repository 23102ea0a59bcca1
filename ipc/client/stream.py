"""A stream or an upload over a channel: credits and queues on the client's side.

The receiver of items grants credit, the sender spends it by the size of each item and waits when it has none
(`atoll.ipc.streams`), so a slow reader holds a fast writer at a bounded distance, and neither side queues more than a window
of what the other sends. What has credit and finds no room in the ring is owed (outbox.py): nobody waits for room here.
"""

from collections import deque
from collections.abc import Callable

import msgspec

from atoll.ipc import clock
from atoll.ipc.errors import Aborted, AtollError
from atoll.ipc.streams import RECORD_ITEMS, Receiver, Sender, cost, total
from atoll.native import Kind, Result

from .channel import ClientChannel
from .host import Subscribe
from .pending import NANOSECONDS, Pending, within

_encode = msgspec.msgpack.Encoder().encode


class ChannelStream:
    """See `atoll.ipc.transport.RawStream`; `pending` is the request that opened it."""

    def __init__(self, channel: ClientChannel, pending: Pending) -> None:
        label = pending.site.spec.label
        self.pending = pending
        self._channel = channel
        self.upload = pending.site.spec.kind == "upload"
        self.began = False
        self._items: deque[tuple[list[bytes], int]] = deque()
        """As they arrived, with what they cost."""
        # Threads of a client receive for each other: what arrives is counted by whoever receives, the rest by the reader.
        self._receiver = Receiver(label)
        self._sender = Sender(label)
        self._over = False
        self._error: AtollError | None = None
        self._waiters: list[Callable[[], None]] = []

    # called by the channel (see Opened) ---------------------------------------------------------------------------

    def arrived(self, items: list[bytes]) -> None:
        self.began = True
        price = total(items)
        self._receiver.arrive(price)
        self._items.append((items, price))
        self._wake()

    def credited(self, limit: int) -> None:
        self._sender.grant(limit)
        self._wake()

    def ended(self, error: AtollError | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
            self._wake()

    def disown(self, error: AtollError) -> None:
        self._over, self._error = True, error

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()

    # the client's side --------------------------------------------------------------------------------------------

    def _next(self) -> list[bytes] | None:
        """What one record had, or as much of what several had."""
        items, price = self._items.popleft()
        while self._items and len(items) < RECORD_ITEMS:
            more, dearer = self._items.popleft()
            items += more
            price += dearer
        limit = self._receiver.take(price)
        if limit is not None and not (self.upload or self._over):
            self._control(Kind.CREDIT, _encode(limit))
        return items

    def _control(self, kind: Kind, payload: bytes = b"") -> None:
        if self._channel.outbox.control(self.pending, kind, payload) == Result.MISBEHAVED:
            self._channel.misbehaved()

    def _end(self) -> None:
        if self._error is not None:
            raise self._error

    def _readable(self) -> bool:
        return self._over or bool(self._items)

    def receive_now(self) -> list[bytes] | None:
        while not self._items:
            if self._over:
                self._end()
                return None
            self._block(self._readable)
        return self._next()

    async def receive(self) -> list[bytes] | None:
        while not self._items:
            if self._over:
                self._end()
                return None
            await self._until(self._readable)
        return self._next()

    def send_now(self, item: bytes) -> None:
        price = cost(item)
        while not self._try_send(item, price):
            self._block(lambda: self._over or self._sender.left >= price)

    async def send(self, item: bytes) -> None:
        price = cost(item)
        while not self._try_send(item, price):
            await self._until(lambda: self._over or self._sender.left >= price)

    def _try_send(self, item: bytes, price: int) -> bool:
        if self._over:
            self._end()
            raise Aborted(self.pending.site.spec.label, "it has ended")
        if self._sender.left < price:
            return False
        payload = _encode([item])
        self._channel.outbox.fits(self.pending, payload)
        self.began = True
        self._sender.spend(price)
        self._control(Kind.ITEM, payload)
        return True

    def finish(self) -> None:
        self.began = True
        if not self._over:
            self._control(Kind.END)

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self.pending.cancel()
            self._wake()

    def _told(self, ready: Callable[[], bool]) -> Subscribe:
        """How to be told that something of this stream has changed; at once if it is `ready`."""

        def subscribe(notify: Callable[[], None]) -> None:
            self._waiters.append(notify)
            if ready():
                notify()

        return subscribe

    def _block(self, ready: Callable[[], bool]) -> None:
        self._channel.host.may_block(self.pending.site.spec.label)
        self._channel.block(self.pending, ready, self._told(ready))

    async def _until(self, ready: Callable[[], bool]) -> None:
        """Until it is `ready`, or the deadline has passed, which ends it: a server that says nothing keeps nobody."""

        async def change() -> None:
            while not ready():
                await self._channel.host.wait(self._told(ready))

        until = self.pending.until
        if not until:
            await change()
        elif not await within((until - clock.monotonic_ns()) / NANOSECONDS, change):
            self._channel.expire(self.pending)
