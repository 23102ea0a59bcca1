"""How many bytes each badge may keep here.

A badge is charged for what its reference rows hold, each row by itself, and for what it has put or let go
and collection may not take yet. A blob that two badges keep is charged to both: who else has the same content
is nobody's business. The unbadged capability, the operator's, has no bound; what an image binds bears its
server's badge and has one like any other. What nobody refers to is kept in memory only, so a restart forgives
it: at most one quota more a restart, for one grace.
"""

from collections.abc import Awaitable, Callable, Iterable

from atoll.ipc.errors import QuotaExceeded

Held = dict[object, tuple[float, int]]
"""What is not referred to: until when it is spared, and its bytes."""


class Quotas:
    """All methods but `load` are plain; `load(badge)` comes before the others are asked about that badge."""

    def __init__(
        self, most: int, grace: float, clock: Callable[[], float], referred: Callable[[int], Awaitable[int]]
    ) -> None:
        """`most`: bytes, 0 without bound; `referred`: what the rows of a badge hold."""
        self._most = most
        self._grace = grace
        self._clock = clock
        self._count = referred
        self._referred: dict[int, int] = {}
        self._held: dict[int, Held] = {}

    async def load(self, badge: int) -> None:
        if self._bounds(badge) and badge not in self._referred:
            counted = await self._count(badge)
            self._referred.setdefault(badge, counted)

    def _bounds(self, badge: int) -> bool:
        return bool(self._most and badge)

    def used(self, badge: int) -> int:
        """Bytes that count. What is spared no more is forgotten."""
        held = self._held.setdefault(badge, {})
        now = self._clock()
        for key in [key for key, (until, _) in held.items() if until <= now]:
            del held[key]
        return self._referred[badge] + sum(size for _, size in held.values())

    def check(self, badge: int, more: int) -> None:
        """Raises QuotaExceeded if `more` bytes are more than the badge has left."""
        if self._bounds(badge) and self.used(badge) + more > self._most:
            raise QuotaExceeded(f"badge {badge} in storage", "bytes", self._most)

    def hold(self, badge: int, key: object, size: int) -> None:
        """Bytes that are spared for a grace from now on, although no row of the badge refers to them."""
        if self._bounds(badge) and size > 0:
            self._held.setdefault(badge, {})[key] = (self._clock() + self._grace, size)

    def drop(self, badge: int, key: object) -> None:
        """These bytes are not kept after all, or are held under another key by now."""
        self._held.get(badge, {}).pop(key, None)

    def refer(self, badge: int, hashes: Iterable[bytes], change: int) -> None:
        """A row now holds `change` bytes more than before, and these blobs with them. Raises QuotaExceeded,
        and then nothing has changed.
        """
        if not self._bounds(badge):
            return
        held = self._held.setdefault(badge, {})
        named = set(hashes) & held.keys()
        self.check(badge, change - sum(held[each][1] for each in named))
        for each in named:
            held.pop(each, None)
        self._referred[badge] += change

    def undo(self, badge: int, change: int) -> None:
        """The row was not written after all."""
        if self._bounds(badge):
            self._referred[badge] -= change
