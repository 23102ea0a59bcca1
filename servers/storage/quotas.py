"""How many bytes each badge may keep here.

A badge is charged for what its reference rows hold, each row by itself, and for what it has put or let go
and collection may not take yet. A blob that two badges keep is charged to both: who else has the same content
is nobody's business. The unbadged capability, the operator's, has no bound; what an image binds bears its
server's badge and has one like any other. What nobody refers to is kept in memory only, so a restart forgives
it: at most one quota more a restart, for one grace.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable

from atoll.ipc.errors import QuotaExceeded


class Held:
    """What a badge has here and no row refers to: until when each is spared, and its bytes.

    The grace is the same for all, so they stand in the order in which their time is over."""

    def __init__(self) -> None:
        self._sizes: dict[object, tuple[float, int]] = {}
        self.bytes = 0

    def put(self, key: object, until: float, size: int) -> None:
        """Spare it from now on; it stands last, also if it was here already."""
        self.take(key)
        self._sizes[key] = until, size
        self.bytes += size

    def take(self, key: object) -> int:
        """It is held no more; its bytes, 0 if it was not."""
        size = self.size(key)
        if self._sizes.pop(key, None) is not None:
            self.bytes -= size
        return size

    def size(self, key: object) -> int:
        return self._sizes.get(key, (0.0, 0))[1]

    def pass_time(self, now: float) -> None:
        """Forget what is spared no more."""
        while self._sizes:
            key, (until, _) = next(iter(self._sizes.items()))
            if until > now:
                return
            self.take(key)


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
        self._held: defaultdict[int, Held] = defaultdict(Held)

    async def load(self, badge: int) -> None:
        if self._bounds(badge) and badge not in self._referred:
            counted = await self._count(badge)
            self._referred.setdefault(badge, counted)

    def _bounds(self, badge: int) -> bool:
        return bool(self._most and badge)

    def used(self, badge: int) -> int:
        """Bytes that count. What is spared no more is forgotten."""
        held = self._held[badge]
        held.pass_time(self._clock())
        return self._referred[badge] + held.bytes

    def check(self, badge: int, more: int) -> None:
        """Raises QuotaExceeded if `more` bytes are more than the badge has left."""
        if self._bounds(badge) and self.used(badge) + more > self._most:
            raise QuotaExceeded(f"badge {badge} in storage", "bytes", self._most)

    def hold(self, badge: int, key: object, size: int) -> None:
        """Bytes that are spared for a grace from now on, although no row of the badge refers to them."""
        if self._bounds(badge) and size > 0:
            self._held[badge].put(key, self._clock() + self._grace, size)

    def drop(self, badge: int, key: object) -> None:
        """These bytes are not kept after all, or are held under another key by now."""
        self._held[badge].take(key)

    def refer(self, badge: int, hashes: Iterable[bytes], change: int) -> None:
        """A row now holds `change` bytes more than before, and these blobs with them. Raises QuotaExceeded,
        and then nothing has changed.
        """
        if not self._bounds(badge):
            return
        held, named = self._held[badge], set(hashes)
        self.check(badge, change - sum(held.size(each) for each in named))
        for each in named:
            held.take(each)
        self._referred[badge] += change

    def undo(self, badge: int, change: int) -> None:
        """The row was not written after all."""
        if self._bounds(badge):
            self._referred[badge] -= change
