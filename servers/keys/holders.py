"""Which processes hold data keys, and what each has yet to let go of."""

import math

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
    def __init__(self) -> None:
        self._by_channel: dict[int, Holder] = {}
        self._changed = trio.Event()

    def add(self, channel: int, holder: Holder) -> None:
        """A channel has one; an older stream of it is over for us."""
        self._by_channel[channel] = holder

    def remove(self, channel: int, holder: Holder) -> None:
        if self._by_channel.get(channel) is holder:
            del self._by_channel[channel]
            self._note()

    def of(self, channel: int) -> Holder | None:
        return self._by_channel.get(channel)

    def stir(self) -> None:
        """There is something that each may have to hear of."""
        for holder in self._by_channel.values():
            holder.more.set()
            holder.more = trio.Event()

    def answered(self, channel: int, position: int) -> None:
        holder = self._by_channel.get(channel)
        if holder is not None:
            holder.let_go = max(holder.let_go, min(position, holder.told))
            self._note()

    async def without(self, badges: set[int], position: int, most: float) -> list[str]:
        """Returns when all holders of these keyspaces have let go of what purges up to that number were about; or, after
        `most` seconds, the servers that have not."""
        with trio.move_on_after(most if most < math.inf else 3600.0):
            while self._behind(badges, position):
                await self._changed.wait()
        return self._behind(badges, position)

    def _behind(self, badges: set[int], position: int) -> list[str]:
        return sorted(
            {
                each.server
                for each in self._by_channel.values()
                if each.badge in badges and each.let_go < position
            }
        )

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
