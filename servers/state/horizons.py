"""How far back each keyspace can be read, and how far compaction has come with it.

One row of META a keyspace, written in the very batch that removes something: so every snapshot that lacks a version
also has the horizon that says so. The row is no key with history: a batch of compaction writes nothing that would
have to be compacted.

What a horizon H of a keyspace promises: reads as of H or later give what they gave when nothing had been removed; the
feed after H is complete. Below H only what is pinned can be read, as of exactly the pinned revision. An event leaves
the feed once nothing that it wrote is left, so one that is missing above H wrote nothing in the keyspace.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from atoll.ipc.errors import AtollError
from atoll.ipc.system.state import Compacted

from . import layout, pins
from .engine import Batch, Row, Snapshot, Table
from .versions import time_of

_KEY: Final = b"horizon/"
_EVERYTHING: Final = (0, (1 << 32) - 1)


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """Revisions and bytes; the counts are of all that was ever removed."""

    horizon: int = 0
    time: int = 0
    """When the horizon's revision was committed, in ns: its event may leave the feed."""
    aged: int = 0
    """Up to where the feed was swept for what is too old."""
    counted: int = 0
    """Up to where for what is one version too many, of `most`."""
    most: int = 0
    forgotten: int = 0
    """Up to where for commit ids; those up to here are gone."""
    held: tuple[int, ...] = ()
    """Pinned revisions that were spared so far: when one is dropped, the feed after it is swept anew."""
    versions: int = 0
    ids: int = 0
    size: int = 0
    buried: int = 0
    """The newest deletion that was removed: the feed tells no more that its key is gone."""


NONE: Final = Progress()
decode: Final = msgspec.msgpack.Decoder(Progress).decode
encode: Final = msgspec.msgpack.Encoder().encode


def is_key(key: bytes) -> bool:
    """Whether a row of META is a keyspace's progress."""
    return key.startswith(_KEY) and len(key) == len(_KEY) + layout.KEYSPACE_SIZE


def keyspace_of(key: bytes) -> int:
    """The keyspace that such a row is of."""
    return layout.keyspace_of(key[len(_KEY) :])


def progress_of(snapshot: Snapshot, keyspace: int) -> Progress:
    raw = snapshot.get(Table.META, _KEY + layout.prefix(keyspace))
    return NONE if raw is None else decode(raw)


def put(batch: Batch, keyspace: int, progress: Progress) -> None:
    batch.put(Table.META, _KEY + layout.prefix(keyspace), encode(progress))


def all_of(snapshot: Snapshot, first: int = 0, last: int = _EVERYTHING[1]) -> Iterator[tuple[int, Progress]]:
    """Every keyspace of which something was removed, or swept, in the order of their numbers."""
    cursor = snapshot.cursor(Table.META)
    row: Row | None = cursor.seek(_KEY + layout.prefix(first))
    while row is not None and is_key(row[0]) and keyspace_of(row[0]) <= last:
        yield keyspace_of(row[0]), decode(row[1])
        row = cursor.next()


def span(start: bytes, end: bytes | None) -> tuple[int, int]:
    """Numbers of the first and the last keyspace that has absolute keys in start <= key < end."""
    size = layout.KEYSPACE_SIZE
    first = int.from_bytes(start[:size].ljust(size, b"\0"), "big")
    if end is None or len(end) < size or end[:size] == b"\xff" * size:
        return first, _EVERYTHING[1]
    last = layout.keyspace_of(end)
    return first, max(first, last if len(end) > size else last - 1)


def highest(snapshot: Snapshot, keyspaces: tuple[int, int]) -> Progress:
    """The progress with the highest horizon among keyspaces."""
    first, last = keyspaces
    if first == last:
        return progress_of(snapshot, first)
    return max((found for _, found in all_of(snapshot, first, last)), key=_horizon, default=NONE)


def of_keyspace(badge: int) -> tuple[int, int]:
    """The span that a badge may read: its keyspace, or for the unbadged capability all of them."""
    return (badge, badge) if badge else _EVERYTHING


def refusal(snapshot: Snapshot, revision: int, keyspaces: tuple[int, int]) -> AtollError | None:
    """Why these keyspaces cannot be read as of exactly a revision; None: they can."""
    highest_ = highest(snapshot, keyspaces)
    if revision >= highest_.horizon:
        return None
    for keyspace, found in all_of(snapshot, *keyspaces):
        if revision < found.horizon and revision not in pins.held(snapshot, keyspace):
            return Compacted(revision=revision, horizon=highest_.horizon)
    return None


def at_time(snapshot: Snapshot, nanoseconds: int, kept: Progress) -> int:
    """A revision, as of which what `kept` speaks of reads as it stood at a time: the last one at or before that, or
    one after which nothing was written there until then. Raises `Compacted` where only removed events could tell."""
    found = last_event(snapshot, nanoseconds)
    if nanoseconds >= kept.time:
        return max(found, kept.horizon)
    if snapshot.event(found + 1) is None:
        raise Compacted(revision=found, horizon=kept.horizon)
    return found


def last_event(snapshot: Snapshot, nanoseconds: int) -> int:
    """The last revision at or before a time that is in the feed; 0 before the first."""
    first, last = snapshot.bounds()
    low, high, found = first, last + 1, 0
    while low < high:
        middle = (low + high) // 2
        revision, time = middle, time_of(snapshot, middle)
        if not time:
            revision, raw = next(snapshot.feed(middle))
            time = layout.time_of(raw)
        if time <= nanoseconds:
            found, low = revision, revision + 1
        else:
            high = middle
    return found


def _horizon(progress: Progress) -> int:
    return progress.horizon
