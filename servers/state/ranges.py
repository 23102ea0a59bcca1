"""What a transaction says of ranges of keys, as one map: by key, the revision after which it was not to be written.

However many ranges there are and however they overlap, each key that was written is held against all of them in one search,
and no part of the store is looked through twice.
"""

from bisect import bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from atoll.ipc.system.state import Range

MOST: Final = 1024
"""Ranges of one transaction at most, those that adjoin being one."""


class Ranges:
    def __init__(self, ranges: list[Range]) -> None:
        """Absolute, each with an end."""
        self._bounds: list[bytes] = []
        self._least: list[int | None] = []
        """From each bound to the next one: the revision, None where no range is."""
        self._map(sorted(ranges, key=lambda each: each.start))

    def _map(self, ranges: list[Range]) -> None:
        bounds = sorted({each.start for each in ranges} | {each.end for each in ranges})
        open_now: list[tuple[int, bytes]] = []
        at = 0
        for bound in bounds:
            while at < len(ranges) and ranges[at].start == bound:
                heappush(open_now, (ranges[at].revision, ranges[at].end))
                at += 1
            while open_now and open_now[0][1] <= bound:
                heappop(open_now)
            self._bounds.append(bound)
            self._least.append(open_now[0][0] if open_now else None)

    def revision_of(self, key: bytes) -> int | None:
        """The revision after which a key was not to be written; None: nothing is said of it."""
        at = bisect_right(self._bounds, key) - 1
        return None if at < 0 else self._least[at]

    def __iter__(self) -> Iterator[Range]:
        """The same, as ranges that do not overlap, in order."""
        for start, end, revision in zip(self._bounds, self._bounds[1:], self._least, strict=False):
            if revision is not None:
                yield Range(start, end, revision)


def note(ranges: list[Range], more: Range) -> bool:
    """Adds one to those of a transaction; whether there is one more now. A page that goes on where the one before it ended
    makes that longer."""
    if more in ranges:
        return False
    if ranges:
        last = ranges[-1]
        if last.revision == more.revision and last.start <= more.start <= last.end:
            ranges[-1] = Range(last.start, max(last.end, more.end), last.revision)
            return False
    ranges.append(more)
    return True
