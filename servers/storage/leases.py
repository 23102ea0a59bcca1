"""Which blobs collection must spare although no reference row names them.

A blob is unreferenced between its put and the commit of the row that refers to it, and while that row is
on its way to the store. Two things cover the gap. A *lease*: from its last put, reference or release a
blob is spared for the grace time. A *pin*: while a put or a reference is being made durable the blob is
spared whatever the clock says, and its lease begins anew when the pin ends. Leases live in memory only;
after a restart every blob has one from the start on, so a crash can only delay collection. Times are
seconds of a clock that does not jump (CLOCK_MONOTONIC).

One task at a time touches an instance: all methods are plain and run on the event loop's thread.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class Leases:
    def __init__(self, clock: Callable[[], float], grace: float) -> None:
        self.grace = grace
        self._clock = clock
        self._floor = clock() + grace
        """Every blob is spared until then: nothing is known of what happened before the start."""
        self._until: dict[bytes, float] = {}
        self._pins: Counter[bytes] = Counter()

    def renew(self, hashes: Iterable[bytes]) -> None:
        """Begin the grace of these blobs anew."""
        until = self._clock() + self.grace
        for each in hashes:
            self._until[each] = until

    @contextmanager
    def pinned(self, hashes: Iterable[bytes]) -> Iterator[None]:
        """Spare these blobs while the block runs, and for the grace after it."""
        held = list(hashes)
        self._pins.update(held)
        try:
            yield
        finally:
            self.renew(held)
            for each in held:
                self._pins[each] -= 1
                if not self._pins[each]:
                    del self._pins[each]

    def left(self, hash: bytes) -> float:
        """Seconds for which a blob is spared; infinite while pinned, 0 when collection may take it."""
        if hash in self._pins:
            return float("inf")
        return max(0.0, max(self._floor, self._until.get(hash, 0.0)) - self._clock())

    def spares(self, hash: bytes) -> bool:
        return self.left(hash) > 0.0

    def forget_expired(self) -> None:
        """Drop what no longer matters, so that memory follows the puts of one grace time."""
        now = self._clock()
        self._until = {each: until for each, until in self._until.items() if until > now}

    def hand_over(self) -> dict[bytes, float]:
        """Seconds left of each lease, for the next version of the server."""
        now = self._clock()
        return {each: until - now for each, until in self._until.items() if until > now}

    def take_over(self, left: dict[bytes, float]) -> None:
        now = self._clock()
        for each, seconds in left.items():
            self._until[each] = max(self._until.get(each, 0.0), now + seconds)
