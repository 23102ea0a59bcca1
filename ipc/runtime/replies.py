"""Replies on their way: into the client's ring, or kept until it has room. (Raw cffi.)

A client whose reply ring is full has its further requests left alone until it has taken its replies, so what is kept for it
is bounded by what it had in hand.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from atoll.ipc import errors
from atoll.ipc.errors import TooLarge
from atoll.native import Kind, Result, lib

from .inhand import InHand, Origin

RETRY = 0.0005
"""Seconds until a full reply ring is tried again."""

_encode = msgspec.msgpack.Encoder().encode


class Replies:
    """`loop` is the C loop; `channels` the served ones by number; `misbehaved` closes one; `soon` asks for a turn."""

    def __init__(
        self,
        loop: Any,
        channels: dict[int, Any],
        largest: int,
        misbehaved: Callable[[int], None],
        soon: Callable[[], None],
    ) -> None:
        self.kept: dict[int, deque[tuple[int, int, int, bytes]]] = {}
        """Per channel: request, lane, kind and payload of replies that found no room, in order."""
        self._loop = loop
        self._channels = channels
        self._largest = largest
        self._misbehaved = misbehaved
        self._soon = soon

    def put(self, origin: Origin, kind: int, payload: bytes) -> None:
        """Send it, or keep it; nothing for a cast, or if the channel is gone."""
        if origin.cast or origin.channel not in self._channels:
            return
        if origin.channel in self.kept:
            self.keep(origin.channel, origin.request, origin.lane, kind, payload)
            return
        result = self._send(origin, kind, payload)
        if result == Result.FULL:
            self.keep(origin.channel, origin.request, origin.lane, kind, payload)
        elif result == Result.TOO_LARGE:
            self.put(origin, Kind.FAULT, errors.encode(TooLarge("a reply", len(payload), self._largest)))
        elif result == Result.MISBEHAVED:
            self._misbehaved(origin.channel)

    def _send(self, origin: Origin, kind: int, payload: bytes) -> int:
        result: int = lib.atoll_loop_reply(
            self._loop, origin.channel, origin.request, origin.lane, int(kind), payload, len(payload)
        )
        return result

    def keep(self, channel: int, request: int, lane: int, kind: int, payload: bytes) -> None:
        """Take nothing more from this client until it has taken its replies."""
        self.kept.setdefault(channel, deque()).append((request, lane, int(kind), payload))
        lib.atoll_loop_hold(self._loop, channel, 1)
        self._soon()

    def flush(self) -> None:
        """Try what was kept again."""
        for channel, queue in list(self.kept.items()):
            while queue:
                request, lane, kind, payload = queue[0]
                result = lib.atoll_loop_reply(self._loop, channel, request, lane, kind, payload, len(payload))
                if result == Result.FULL:
                    break
                queue.popleft()
                if result == Result.MISBEHAVED:
                    self._misbehaved(channel)
                    break
            if not queue:
                self.kept.pop(channel, None)
                lib.atoll_loop_hold(self._loop, channel, 0)

    async def items(self, inhand: InHand, items: list[bytes]) -> None:
        """Send items of a stream in one record, once there is credit and room for them."""
        credit, origin = inhand.credit, inhand.origin
        assert credit is not None
        await credit.wait()
        credit.left -= len(items)
        payload = _encode(items)
        while (
            origin.channel in self.kept or (result := self._send(origin, Kind.ITEM, payload)) == Result.FULL
        ):
            lib.atoll_loop_flush(self._loop)
            await trio.sleep(RETRY)
        if result == Result.TOO_LARGE:
            raise TooLarge(f"an item of {inhand.spec.label}", len(payload), self._largest)
        if result < 0:
            inhand.cancel()

    def grant(self, inhand: InHand, count: int) -> None:
        """See `Grantor`."""
        self.put(inhand.origin, Kind.CREDIT, _encode(count))
