"""What a caller names, as it lies in the store, and back: keys are relative to its keyspace, and reach no further."""

from typing import Final

from msgspec.structs import replace

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.state import AsOf, Change, Expect, Item, Page, Range

from . import layout
from .pins import OWN

MOST: Final = 1 << 62
"""Above any revision, and any time in ns."""


def inside(badge: int, key: bytes) -> bytes:
    if badge != OWN:
        return layout.prefix(badge) + key
    if len(key) < layout.KEYSPACE_SIZE:
        raise BadRequest("key", "the number of a keyspace in 4 bytes, then the key (`absolute`)", repr(key))
    return key


def revision(where: str, number: int) -> int:
    """A revision as a caller names it. Raises `BadRequest` for what can be none."""
    if not 0 <= number < MOST:
        raise BadRequest(where, f"a revision, 0 to {MOST - 1}", str(number))
    return number


def moment(as_of: AsOf) -> AsOf:
    """A moment as a caller names it: a revision, a time in seconds, or now."""
    if isinstance(as_of, float):
        return seconds("as_of", as_of)
    return None if as_of is None else revision("as_of", as_of)


def seconds(where: str, time: float) -> float:
    """A time as a caller names it, in seconds since the epoch."""
    if not 0 <= time < MOST / 1e9:
        raise BadRequest(where, f"seconds since 1970, 0 to {MOST / 1e9:.0f}", repr(time))
    return time


def within(badge: int, prefix: bytes) -> bytes:
    """An absolute prefix. Of the unbadged capability it may be shorter than a keyspace's number."""
    return prefix if badge == OWN else layout.prefix(badge) + prefix


def span(badge: int, start: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Absolute bounds. An empty end is that of the keyspace, or for the unbadged capability of the store."""
    if badge == OWN:
        return start, end or b"\xff" * (layout.KEYSPACE_SIZE + 1)
    prefix = layout.prefix(badge)
    return prefix + start, prefix + end if end else layout.prefix(badge + 1)


def check(badge: int, check: Expect | Range) -> Expect | Range:
    if isinstance(check, Expect):
        return Expect(inside(badge, check.key), check.revision)
    return Range(*span(badge, check.start, check.end), revision("expects", check.revision))


def bare_item(badge: int, item: Item) -> Item:
    return item if badge == OWN else Item(bare_key(badge, item.key), item.value, item.revision, item.time)


def bare(badge: int, item: Item | None) -> Item | None:
    return None if item is None else bare_item(badge, item)


def bare_key(badge: int, key: bytes) -> bytes:
    return key if badge == OWN else key[layout.KEYSPACE_SIZE :]


def bare_page(badge: int, page: Page) -> Page:
    if badge == OWN:
        return page
    return Page(
        [bare_item(badge, item) for item in page.items], page.more, page.revision, bare_key(badge, page.rest)
    )


def bare_change(badge: int, change: Change) -> Change:
    if badge == OWN:
        return change
    items = [bare_item(badge, item) for item in change.items]
    return replace(change, items=items)
