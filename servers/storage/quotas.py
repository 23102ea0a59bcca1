"""How many bytes each badge may keep here.

A badge is charged for what its reference rows hold, each row by itself, and for what it has put or let go
and collection may not take yet. A blob that two badges keep is charged to both: who else has the same content
is nobody's business. The unbadged capability, the operator's, has no bound; what an image binds bears its
server's badge and has one like any other. What nobody refers to is kept in memory only, so a restart forgives
it: at most one quota more a restart, for one grace.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from atoll.ipc.errors import CallerFault, Failure, QuotaExceeded


class Change(NamedTuple):
    """Of a row: the bytes that it holds before and after, the blobs that it will name, and the bytes of those that it names
    no more."""

    before: int
    after: int
    named: Collection[bytes]
    let_go: int


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
        self._unsure: dict[tuple[int, object], int] = {}
        """Rows of a badge that are being written, or of which nobody heard what came of it: what they are charged for."""

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

    @contextmanager
    def writing(self, badge: int, row: object, change: Change) -> Iterator[None]:
        """While a row is written, by one task at a time. Raises QuotaExceeded, and then nothing has changed.

        Whoever gives up, or loses the store, does not know what the row holds now: it is charged for the most
        that it may hold, until it is written again.
        """
        if not self._bounds(badge):
            yield
            return
        held, known = self._held[badge], self._unsure.get((badge, row))
        charged = change.before if known is None else known
        more = max(change.after - charged, 0)
        new = more - sum(held.size(each) for each in change.named)
        if new > 0:
            self.check(badge, new)
        taken = {each: held.take(each) for each in change.named}
        self._charge(badge, row, more, charged + more)
        try:
            yield
        except (CallerFault, Failure):  # refused: nothing was written
            self._charge(badge, row, -more, known)
            for each, size in taken.items():
                self.hold(badge, each, size)
            raise
        self._charge(badge, row, change.after - charged - more, None)
        self.hold(badge, object(), max(change.let_go, charged - change.after))

    def _charge(self, badge: int, row: object, more: int, unsure: int | None) -> None:
        self._referred[badge] += more
        if unsure:
            self._unsure[badge, row] = unsure
        else:
            self._unsure.pop((badge, row), None)
