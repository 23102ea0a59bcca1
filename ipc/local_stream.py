"""A stream or an upload between a caller and a host in the same process: both ends of it."""

from collections import deque
from collections.abc import Callable

import trio

from . import context, errors
from .changes import Signal
from .errors import Aborted, AtollError, TooLarge
from .limits import MAX_PAYLOAD
from .method import MethodSpec
from .streams import WINDOW, Receiver, Sender, cost


class LocalStream:
    """Both ends of a stream or an upload. Its queue is shared by two threads, under the lock of the deque's
    own operations; counters of one side are touched by that side, and limits are passed as plain integers."""

    def __init__(self, spec: MethodSpec, on_cancel: Callable[[], None]) -> None:
        """`on_cancel` is called when the client gives it up."""
        self.spec = spec
        self._on_cancel = on_cancel
        self.sender = Sender(spec.label)
        self.receiver = Receiver(spec.label)
        self._queue: deque[tuple[list[bytes], int]] = deque()
        """As they were sent, with what they cost."""
        self._changed = Signal()
        self._reply: bytes | None = None
        self._error: AtollError | None = None
        self._over = False
        self._unread = 0
        """Items that came after it was."""
        self._finished = False

    # the server's side
    # -----------------------------------------------------------------------------------------------

    async def deliver(self, items: list[bytes]) -> None:
        """Give items to the client, as far as it has granted credit; wait until it has for the rest."""
        while items and not self._over:
            count, price = self.sender.affords(items)
            if count:
                self._pass(items[:count], price)
                items = items[count:]
            else:
                await self._changed.wait(self._affordable(cost(items[0])))
        if self._over:
            # Its source is cancelled in a turn of the loop, which nothing else may give; and where it waits, as in a server
            # process. One that never waits hears of it here.
            self._unread += len(items)
            if self._unread > WINDOW:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()

    def _affordable(self, price: int) -> Callable[[], bool]:
        """Whether there is credit for it by now, or none is needed any more."""
        return lambda: self._over or self.sender.left >= price

    def _pass(self, items: list[bytes], price: int) -> None:
        self.sender.spend(price)
        self.receiver.arrive(price)
        self._queue.append((items, price))
        self._changed.notify()

    def end(self, error: AtollError | None) -> None:
        if not self._over:
            self._error = None if error is None else errors.decode(errors.encode(error), self.spec)
            self._over = True
            self._changed.notify()

    def complete(self, reply: bytes) -> None:
        """The reply of an upload."""
        self._reply = reply
        self.end(None)

    def __aiter__(self) -> "LocalStream":
        return self

    async def __anext__(self) -> bytes:
        """The next item that the client uploads."""
        await self._changed.wait(lambda: bool(self._queue) or self._finished)
        if not self._queue:
            raise StopAsyncIteration
        (item,), price = self._queue.popleft()
        self._grant(price)
        return item

    def _grant(self, price: int) -> None:
        limit = self.receiver.take(price)
        if limit is not None:
            self.sender.grant(limit)
            self._changed.notify()

    # the client's side
    # -----------------------------------------------------------------------------------------------

    def receive_now(self) -> list[bytes] | None:
        context.forbid_blocking(self.spec.label)
        self._changed.block(self._readable)
        return self._next()

    async def receive(self) -> list[bytes] | None:
        await self._changed.wait(self._readable)
        return self._next()

    def _readable(self) -> bool:
        return self._over or (self.spec.kind == "stream" and bool(self._queue))

    def _next(self) -> list[bytes] | None:
        if self.spec.kind == "stream" and self._queue:
            items, price = self._queue.popleft()
            self._grant(price)
            return items
        if self._error is not None:
            raise self._error
        if self._reply is None:
            return None
        reply, self._reply = self._reply, None
        return [reply]

    def send_now(self, item: bytes) -> None:
        context.forbid_blocking(self.spec.label)
        price = cost(item)
        self._changed.block(self._affordable(price))
        self._put(item, price)

    async def send(self, item: bytes) -> None:
        price = cost(item)
        await self._changed.wait(self._affordable(price))
        self._put(item, price)

    def _put(self, item: bytes, price: int) -> None:
        if len(item) > MAX_PAYLOAD:
            raise TooLarge(f"an item of {self.spec.label}", len(item), MAX_PAYLOAD)
        if self._over:
            raise self._error or Aborted(self.spec.label, "its handler ended before it took all items")
        self._pass([item], price)

    def finish(self) -> None:
        self._finished = True
        self._changed.notify()

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._queue.clear()
            self._changed.notify()
            self._on_cancel()
