"""What is not the same in a keyspace as of two revisions, key by key."""

from collections.abc import Iterator
from typing import NamedTuple

from atoll.ipc.system.state import Item, State


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
    then, now = _items(state, start, end, earlier), _items(state, start, end, later)
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


def _items(state: State, start: bytes, end: bytes, revision: int) -> Iterator[Item]:
    while True:
        page = state.range.now(start, end, as_of=revision)
        yield from page.items
        if not page.more or not page.items:
            return
        start = page.items[-1].key + b"\0"
