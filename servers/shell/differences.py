"""What is not the same in a keyspace as of two revisions, key by key."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from atoll.ipc.system.state import Item, State

from .rows import pages


class Difference(NamedTuple):
    """A key's values as of the earlier and of the later revision; None: there was none."""

    before: Item | None
    after: Item | None

    @property
    def key(self) -> bytes:
        item = self.before or self.after
        assert item is not None
        return item.key


def differences(state: State, start: bytes, end: bytes, earlier: int, later: int) -> Iterator[Difference]:
    """Keys of the range whose value is another, in order; one that was written again with what it had is the same.

    Reads both states whole, page by page. Raises `Compacted`, `Ahead`.
    """
    then, now = (chain.from_iterable(pages(state, start, end, each)) for each in (earlier, later))
    left, right = next(then, None), next(now, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.key < right.key):
            yield Difference(left, None)
            left = next(then, None)
        elif left is None or right.key < left.key:
            yield Difference(None, right)
            right = next(now, None)
        else:
            if left.value != right.value:
                yield Difference(left, right)
            left, right = next(then, None), next(now, None)
