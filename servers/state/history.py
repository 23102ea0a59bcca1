"""Revisions and history over an engine: what was written, by whom, and how it stood at any moment.

Everything here reads. Writing is `group.py`; how keys, versions and events lie in the engine is `layout.py`.
All keys are absolute. Every method opens one short snapshot, so that what it returns is of one state, and no
reader pins pages for long.
"""

from collections.abc import Callable, Iterator
from typing import Final

from atoll.ipc.system.state import Ahead, AsOf, Change, Compacted, Item, Page, Provenance

from . import layout
from .engine import Engine, Snapshot, Table

PAGE_BYTES: Final = 512 << 10
"""Bytes of keys and values in one `Page` at most; a single larger item still goes alone."""


LOOK: Final = 2048
"""Revisions that one look for changes reads at most, so that a server's other work is never far behind."""

Names = Callable[[int], str]
"""The name of a keyspace, given its number."""


class History:
    def __init__(self, engine: Engine, names: Names) -> None:
        self.engine = engine
        self._names = names

    def head(self) -> int:
        """The last durable revision."""
        with self.engine.snapshot() as snapshot:
            return snapshot.bounds()[1]

    def last(self) -> tuple[int, int]:
        """The last durable revision and its time in ns."""
        with self.engine.snapshot() as snapshot:
            _, last = snapshot.bounds()
            return last, time_of(snapshot, last)

    def get(self, key: bytes, as_of: AsOf = None, least: int = 0) -> Item | None:
        """The version of a key in force at a moment; None where it was absent."""
        with self.engine.snapshot() as snapshot:
            at = moment(snapshot, as_of, least)
            row = newest(snapshot, key, at)
            if row is None:
                return None
            item = _item(snapshot, key, *row)
            return None if item.value is None else item

    def range(
        self,
        start: bytes,
        end: bytes | None,
        limit: int,
        as_of: AsOf = None,
        reverse: bool = False,
        least: int = 0,
    ) -> Page:
        """Keys in start <= key < end at a moment; `end` None is the end of the store."""
        with self.engine.snapshot() as snapshot:
            at = moment(snapshot, as_of, least)
            rows = _backward(snapshot, start, end, at) if reverse else forward(snapshot, start, end, at)
            items: list[Item] = []
            size = 0
            for row, stored in rows:
                item = _item(snapshot, layout.key_of(row), row, stored)
                if item.value is None:
                    continue
                size += len(item.key) + len(item.value) + 24
                if items and (len(items) >= limit or size > PAGE_BYTES):
                    return Page(items, True, at)
                items.append(item)
            return Page(items, False, at)

    def history(self, key: bytes, limit: int, least: int = 0) -> list[Item]:
        """Versions of a key, newest first; deletions have the value None."""
        with self.engine.snapshot() as snapshot:
            moment(snapshot, None, least)
            cursor = snapshot.cursor(Table.VERSIONS)
            first = layout.versioned(key, layout.LAST)
            past = layout.past(first)
            items: list[Item] = []
            row = cursor.seek(first)
            while row is not None and row[0] < past and len(items) < limit:
                items.append(_item(snapshot, key, *row))
                row = cursor.next()
            return items

    def who(self, revision: int, keyspace: int | None) -> Provenance | None:
        """Who wrote a revision; None if it wrote nothing in the keyspace (None: any)."""
        with self.engine.snapshot() as snapshot:
            moment(snapshot, revision)
            raw = snapshot.event(revision)
            if raw is None:
                return None
            entry = layout.entry_of(raw)
            if keyspace is not None and keyspace not in (entry.badge, *entry.others):
                return None
            return self._provenance(entry, layout.time_of(raw))

    def revision_at(self, seconds: float) -> int:
        """The last revision at or before a time."""
        with self.engine.snapshot() as snapshot:
            return _at_time(snapshot, seconds)

    def changes(
        self, after: int, prefix: bytes, limit: int, *, past: bool = True
    ) -> tuple[list[Change], int, bool]:
        """Up to `limit` transactions after a revision that wrote a key with the prefix; the revision that was
        looked at last; and whether there is more to look at: one call looks at `LOOK` revisions at most.

        Without `past` each key that was written comes as it is now, and who wrote what has been replaced
        since stays untold.

        Raises `Compacted` when transactions after `after` are no longer kept, `Ahead` when it is in the
        future.
        """
        found: list[Change] = []
        current: dict[bytes, Item] | None = None if past else {}
        with self.engine.snapshot() as snapshot:
            seen = after
            first, last = snapshot.bounds()
            if after < first - 1:
                raise Compacted(revision=after, horizon=first - 1)
            if after > last:
                raise Ahead(revision=after, head=last)
            for revision, raw in snapshot.feed(after):
                change = self._change(snapshot, revision, raw, prefix, current)
                seen = revision
                if change is not None:
                    found.append(change)
                if len(found) >= limit or seen - after >= LOOK:
                    break
            return found, seen, seen < last

    def change(self, revision: int, prefix: bytes, *, past: bool = True) -> Change | None:
        """What one revision wrote under a prefix; None if nothing. `past` as in `changes`."""
        with self.engine.snapshot() as snapshot:
            raw = snapshot.event(revision)
            if raw is None:
                return None
            return self._change(snapshot, revision, raw, prefix, None if past else {})

    def _change(
        self,
        snapshot: Snapshot,
        revision: int,
        raw: bytes,
        prefix: bytes,
        current: dict[bytes, Item] | None,
    ) -> Change | None:
        """`current` is for who may not see the past: keys as they are in the snapshot, as far as they were
        asked for."""
        entry = layout.entry_of(raw)
        keys = [key for key in entry.keys if key.startswith(prefix)]
        if not keys:
            return None
        time = layout.time_of(raw)
        if current is not None:
            return self._change_now(snapshot, revision, time, entry, keys, current)
        items = []
        for key in keys:
            row = layout.versioned(key, revision)
            stored = snapshot.get(Table.VERSIONS, row)
            # A version that retention has removed since is no longer part of what can be told.
            if stored is not None:
                items.append(Item(key, layout.value_of(snapshot, row, stored), revision, time))
        return Change(revision, time, items, self._provenance(entry, time))

    def _change_now(
        self,
        snapshot: Snapshot,
        revision: int,
        time: int,
        entry: layout.Entry,
        keys: list[bytes],
        current: dict[bytes, Item],
    ) -> Change:
        """A change to who may not see the past. No key is left out, so that a view that follows has all
        that was written up to the change's revision, or what replaced it. A large value that stands for
        many small ones of the past is in memory once."""
        for key in keys:
            row = None if key in current else newest(snapshot, key, layout.LAST)
            if row is not None:
                current[key] = _item(snapshot, key, *row)
        items = [current[key] for key in keys if key in current]
        stands = any(item.revision == revision for item in items)
        told = self._provenance(entry, time) if stands else Provenance(0, "", "", 0, time, "")
        return Change(revision, time, items, told)

    def _provenance(self, entry: layout.Entry, time: int) -> Provenance:
        return Provenance(
            entry.badge,
            self._names(entry.badge),
            entry.call,
            entry.trace,
            time,
            entry.note,
            tuple(self._names(other) for other in entry.others),
        )


def newest(snapshot: Snapshot, key: bytes, at: int) -> tuple[bytes, bytes] | None:
    """The row of a key's version in force at a revision, a deletion too; None if it was never written until
    then."""
    wanted = layout.versioned(key, at)
    row = snapshot.cursor(Table.VERSIONS).seek(wanted)
    if row is None or len(row[0]) != len(wanted) or row[0][:-8] != wanted[:-8]:
        return None
    return row


def forward(snapshot: Snapshot, start: bytes, end: bytes | None, at: int) -> Iterator[tuple[bytes, bytes]]:
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


def _backward(snapshot: Snapshot, start: bytes, end: bytes | None, at: int) -> Iterator[tuple[bytes, bytes]]:
    cursor = snapshot.cursor(Table.VERSIONS)
    floor = layout.escape(start)
    row = cursor.seek_before(None if end is None else layout.escape(end))
    while row is not None and row[0] >= floor:
        base = row[0][:-8]
        found = cursor.seek(base + layout.pack(layout.LAST - at))
        if found is not None and found[0][:-8] == base and len(found[0]) == len(base) + 8:
            yield found
        row = cursor.seek_before(base)


def moment(snapshot: Snapshot, as_of: AsOf, least: int = 0) -> int:
    """The revision that `as_of` means in a snapshot. Raises `Compacted` or `Ahead`."""
    first, last = snapshot.bounds()
    if least > last:
        raise Ahead(revision=least, head=last)
    if as_of is None:
        return last
    at = _at_time(snapshot, as_of) if isinstance(as_of, float) else as_of
    if at > last:
        raise Ahead(revision=at, head=last)
    if at < first - 1:
        raise Compacted(revision=at, horizon=first - 1)
    return at


def _at_time(snapshot: Snapshot, seconds: float) -> int:
    wanted = int(seconds * 1e9)
    first, last = snapshot.bounds()
    low, high = first, last + 1
    while low < high:
        middle = (low + high) // 2
        if time_of(snapshot, middle) <= wanted:
            low = middle + 1
        else:
            high = middle
    return max(low - 1, 0)


def time_of(snapshot: Snapshot, revision: int) -> int:
    """When a revision was committed, in ns; 0 for one that is not in the feed."""
    raw = snapshot.event(revision)
    return 0 if raw is None else layout.time_of(raw)


def _item(snapshot: Snapshot, key: bytes, row: bytes, stored: bytes) -> Item:
    revision = layout.revision_of(row)
    return Item(key, layout.value_of(snapshot, row, stored), revision, time_of(snapshot, revision))
