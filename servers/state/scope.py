"""What a caller names, as it lies in the store, and back: keys are relative to its keyspace, and reach no further."""

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.state import Change, Expect, Item, Page, Range

from . import layout
from .pins import OWN


def inside(badge: int, key: bytes) -> bytes:
    if badge != OWN:
        return layout.prefix(badge) + key
    if len(key) < layout.KEYSPACE_SIZE:
        raise BadRequest("key", "the number of a keyspace in 4 bytes, then the key (`absolute`)", repr(key))
    return key


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
    return Range(*span(badge, check.start, check.end), check.revision)


def bare_item(badge: int, item: Item) -> Item:
    return (
        item if badge == OWN else Item(item.key[layout.KEYSPACE_SIZE :], item.value, item.revision, item.time)
    )


def bare(badge: int, item: Item | None) -> Item | None:
    return None if item is None else bare_item(badge, item)


def bare_page(badge: int, page: Page) -> Page:
    if badge == OWN:
        return page
    return Page([bare_item(badge, item) for item in page.items], page.more, page.revision)


def bare_change(badge: int, change: Change) -> Change:
    if badge == OWN:
        return change
    items = [bare_item(badge, item) for item in change.items]
    return Change(change.revision, change.time, items, change.provenance)
