"""Replies on their way: into the client's ring, or kept until it has room. (Raw cffi.)

The C loop says when a full ring may have room again: the client wakes it. What waits for room is tried in order then, and
nobody looks meanwhile. A client whose replies found no room has its further requests left alone until it has taken them, so
what is kept for it is bounded by what it had in hand; a stream's task waits for its one record.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from atoll.ipc import errors
from atoll.ipc.errors import TooLarge
from atoll.ipc.streams import CREDIT_BYTES
from atoll.native import Kind, Result, lib

from .inhand import InHand, Origin

ITEM = int(Kind.ITEM)
_encode = msgspec.msgpack.Encoder().encode


class Kept:
    """A record without room. `sent`: who waits until it has left, if somebody does; then `result` says how it went."""

    __slots__ = ("kind", "lane", "payload", "request", "result", "sent")

    def __init__(
        self, request: int, lane: int, kind: int, payload: bytes, sent: trio.Event | None = None
    ) -> None:
        self.request = request
        self.lane = lane
        self.kind = int(kind)
        self.payload = payload
        self.sent = sent
        self.result = 0


class Replies:
    """`loop` is the C loop; `channels` the served ones by number; `misbehaved` closes one."""

    def __init__(self, loop: Any, channels: dict[int, Any], misbehaved: Callable[[int], None]) -> None:
        self._kept: dict[int, deque[Kept]] = {}
        """Per channel, in order."""
        self._held: set[int] = set()
        """Channels whose requests are left alone."""
        self._loop = loop
        self._channels = channels
        self._misbehaved = misbehaved

    def put(self, origin: Origin, kind: int, payload: bytes) -> None:
        """Send it, or keep it; nothing for a cast, or if the channel is gone."""
        if origin.cast or origin.channel not in self._channels:
            return
        if self._leaves(origin, kind, payload):
            return
        if origin.channel in self._kept or (
            self._send(origin.channel, Kept(origin.request, origin.lane, kind, payload)) == Result.FULL
        ):
            self.keep(origin.channel, origin.request, origin.lane, kind, payload)

    def _leaves(self, origin: Origin, kind: int, payload: bytes) -> bool:
        """Send a record for which nothing has to be kept. False: `_send` finds out why that does not go."""
        return origin.channel not in self._kept and not lib.atoll_loop_reply(
            self._loop, origin.channel, origin.request, origin.lane, kind, payload, len(payload)
        )

    def _send(self, channel: int, kept: Kept) -> int:
        result: int = lib.atoll_loop_reply(
            self._loop, channel, kept.request, kept.lane, kept.kind, kept.payload, len(kept.payload)
        )
        if result == Result.MISBEHAVED:
            self._misbehaved(channel)
        elif result == Result.TOO_LARGE and kept.sent is None:
            fault = errors.encode(self.too_large("a reply", channel, kept.payload))
            kept.kind, kept.payload = int(Kind.FAULT), fault
            return self._send(channel, kept)
        return result

    def too_large(self, what: str, channel: int, payload: bytes) -> TooLarge:
        """More than this channel's memory ever holds at once."""
        return TooLarge(what, len(payload), lib.atoll_channel_limit(self._channels[channel]))

    def keep(self, channel: int, request: int, lane: int, kind: int, payload: bytes) -> None:
        """Take nothing more from this client until it has taken its replies."""
        self._kept.setdefault(channel, deque()).append(Kept(request, lane, kind, payload))
        self._held.add(channel)
        lib.atoll_loop_hold(self._loop, channel, 1)

    def forget(self, channel: int) -> None:
        """The channel is gone."""
        self._kept.pop(channel, None)
        self._held.discard(channel)

    def waiting(self) -> list[int]:
        """For each reply that finds no room, its channel."""
        return [channel for channel, queue in self._kept.items() for kept in queue if kept.sent is None]

    def flush(self) -> None:
        """Try what was kept again."""
        for channel, queue in list(self._kept.items()):
            while queue and (result := self._send(channel, queue[0])) != Result.FULL:
                kept = queue.popleft()
                kept.result = result
                if kept.sent is not None:
                    kept.sent.set()
            self._let_go(channel)

    def _let_go(self, channel: int) -> None:
        queue = self._kept.get(channel)
        if not queue:
            self._kept.pop(channel, None)
        if channel in self._held and not any(kept.sent is None for kept in queue or ()):
            self._held.discard(channel)
            lib.atoll_loop_hold(self._loop, channel, 0)

    def item(self, inhand: InHand, item: bytes) -> bool:
        """Send one small item of a stream, if there is credit and room for it now. False: it is for `items`."""
        credit = inhand.credit
        assert credit is not None
        if len(item) > CREDIT_BYTES or credit.sent >= credit.limit:
            return False
        if not self._leaves(inhand.origin, ITEM, _encode([item])):
            return False
        credit.sent += 1
        return True

    async def items(self, inhand: InHand, items: list[bytes]) -> None:
        """Send items of a stream, once there is credit and room for them: in one record if the credit allows."""
        credit = inhand.credit
        assert credit is not None
        while items:
            count, price = await credit.wait(items)
            part, items = items[:count], items[count:]
            credit.spend(price)
            payload = _encode(part)
            result = await self._send_waiting(inhand.origin, payload)
            if result == Result.TOO_LARGE:
                raise self.too_large(f"an item of {inhand.spec.label}", inhand.origin.channel, payload)
            if result < 0:
                inhand.cancel()

    async def _send_waiting(self, origin: Origin, payload: bytes) -> int:
        """Send a record of items as soon as it has room."""
        channel = origin.channel
        kept = Kept(origin.request, origin.lane, Kind.ITEM, payload, trio.Event())
        if channel not in self._kept:
            result = self._send(channel, kept)
            if result != Result.FULL:
                return result
        queue = self._kept.setdefault(channel, deque())
        queue.append(kept)
        assert kept.sent is not None
        try:
            await kept.sent.wait()
        finally:
            if not kept.sent.is_set():
                queue.remove(kept)
                self._let_go(channel)
        return kept.result

    def grant(self, inhand: InHand, limit: int) -> None:
        """See `Grantor`."""
        self.put(inhand.origin, Kind.CREDIT, _encode(limit))
