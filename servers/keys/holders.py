"""Which processes hold data keys, and what each has yet to let go of."""

from collections import Counter
from collections.abc import Iterable, Mapping

import trio


class Holder:
    """One open stream of one keyspace."""

    def __init__(self, badge: int, server: str, position: int) -> None:
        self.badge = badge
        self.server = server
        self.told = position
        """The number of the last purge that was sent."""
        self.let_go = position
        """Of the last one that it has answered."""
        self.generation = -1
        """The one that it was told to seal by."""
        self.more = trio.Event()


class Holders:
    """By channel and keyspace: what one server holds of several comes by one channel."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], Holder] = {}
        self._unheard: dict[int, str] = {}
        """Who was there before this process of ours, by channel: it may have keys of the last one's, until it has said."""
        self._asking: Counter[int] = Counter()
        """By channel: of how many keyspaces it is about to say what it holds."""
        self._changed = trio.Event()

    def before(self, channels: Iterable[int]) -> None:
        """These were there before this process, or while another served in its place."""
        self._unheard = {channel: f"whoever is at channel {channel}" for channel in channels}

    def unheard(self) -> list[int]:
        """The channels of those who were there before, and have not said what they hold."""
        return list(self._unheard)

    def named(self, channel: int, server: str) -> None:
        """One of them is that server."""
        if channel in self._unheard:
            self._unheard[channel] = server

    def asks(self, channel: int) -> None:
        """For keys of a keyspace; `heard` follows. Of several it asks at once: until all are answered it may have a key."""
        self._asking[channel] += 1

    def heard(self, channel: int) -> None:
        """It holds what it has said of a keyspace, or nothing."""
        self._asking[channel] -= 1
        if not self._asking[channel]:
            del self._asking[channel]
            self.gone(channel)

    def gone(self, channel: int) -> None:
        """Nobody is there who may have keys of the last process's."""
        if self._unheard.pop(channel, None) is not None:
            self._note()

    def add(self, channel: int, holder: Holder) -> None:
        """An older stream of the same is over for us."""
        self._held[channel, holder.badge] = holder

    def remove(self, channel: int, holder: Holder) -> None:
        if self.of(channel, holder.badge) is holder:
            del self._held[channel, holder.badge]
            self._note()

    def of(self, channel: int, badge: int) -> Holder | None:
        return self._held.get((channel, badge))

    def stir(self) -> None:
        """There is something that each may have to hear of."""
        for holder in self._held.values():
            holder.more.set()
            holder.more = trio.Event()

    def answered(self, channel: int, badge: int, position: int) -> None:
        holder = self.of(channel, badge)
        if holder is not None:
            holder.let_go = max(holder.let_go, min(position, holder.told))
            self._note()

    async def without(self, numbers: Mapping[int, int], most: float) -> list[str]:
        """Returns when all holders of these keyspaces have let go of what the purges of these numbers were about; or, after
        `most` seconds, the servers that have not."""
        with trio.move_on_after(most):
            while self.behind(numbers):
                await self._changed.wait()
        return self.behind(numbers)

    def behind(self, numbers: Mapping[int, int]) -> list[str]:
        """The servers that may have a key yet that was destroyed by a purge of such a number in such a keyspace."""
        behind = {each.server for each in self._held.values() if each.let_go < numbers.get(each.badge, 0)}
        return sorted(behind.union(self._unheard.values() if numbers else ()))

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
