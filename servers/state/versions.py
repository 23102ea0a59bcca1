"""The rows of keys' versions in a snapshot: which one was in force at a revision.

Nothing here asks whether the versions of a moment are still kept: `history.py` does, before it looks.
"""

from collections.abc import Iterator

from atoll.ipc.system.state import Item

from . import layout
from .engine import Row, Snapshot, Table


def newest(snapshot: Snapshot, key: bytes, at: int) -> Row | None:
    """The row of a key's version in force at a revision, a deletion too; None if it was never written until
    then."""
    wanted = layout.versioned(key, at)
    row = snapshot.cursor(Table.VERSIONS).seek(wanted)
    if row is None or len(row[0]) != len(wanted) or row[0][:-8] != wanted[:-8]:
        return None
    return row


def forward(snapshot: Snapshot, start: bytes, end: bytes | None, at: int) -> Iterator[Row]:
    """For each key in start <= key < end, in order, the row in force at a revision."""
    cursor = snapshot.cursor(Table.VERSIONS)
    stop = None if end is None else layout.escape(end)
    row = cursor.seek(layout.escape(start))
    while row is not None and (stop is None or row[0] < stop):
        past = layout.past(row[0])
        if layout.revision_of(row[0]) > at:
            row = cursor.seek(row[0][:-8] + layout.pack(layout.LAST - at))
            if row is None or row[0] >= past:
                continue
        yield row
        # Most keys have few versions: one step is cheaper than a seek, and mostly enough.
        row = cursor.next()
        if row is not None and row[0] < past:
            row = cursor.seek(past)


def backward(snapshot: Snapshot, start: bytes, end: bytes | None, at: int) -> Iterator[Row]:
    """`forward`, last key first."""
    cursor = snapshot.cursor(Table.VERSIONS)
    floor = layout.escape(start)
    row = cursor.seek_before(None if end is None else layout.escape(end))
    while row is not None and row[0] >= floor:
        base = row[0][:-8]
        found = cursor.seek(base + layout.pack(layout.LAST - at))
        if found is not None and found[0][:-8] == base and len(found[0]) == len(base) + 8:
            yield found
        row = cursor.seek_before(base)


class Items:
    """Versions in a snapshot as they are told. The time of a revision is looked up once: its event may be large."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._times: dict[int, int] = {}

    def of(self, key: bytes, row: bytes, stored: bytes) -> Item:
        revision = layout.revision_of(row)
        time = self._times.get(revision)
        if time is None:
            time = self._times[revision] = time_of(self._snapshot, revision)
        return Item(key, layout.value_of(self._snapshot, row, stored), revision, time)


def time_of(snapshot: Snapshot, revision: int) -> int:
    """When a revision was committed, in ns; 0 for one that is not in the feed."""
    raw = snapshot.event(revision)
    return 0 if raw is None else layout.time_of(raw)
