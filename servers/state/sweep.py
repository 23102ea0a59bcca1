"""One step of compaction: which rows of a keyspace nobody can ask for any more, found along the feed.

A version is replaced by the next write of its key, and that write stands in the feed. So whoever goes through the
feed in order, up to a target, meets every version that was replaced up to there, right below the row of the write
that he looks at, and no other; what was removed in an earlier step costs nothing again. A deletion with nothing older
left below it says no more than its absence would, and goes as well. An event goes when none of its versions and no
commit id of it is left.

A row of a version always has its event, and the oldest row that is left of a key is the newest that was not spared for a pin
or what a pin spared: so when a pin is dropped, what it held is met again by a sweep of the feed after the pinned revision.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from . import layout
from .engine import ROW_COST, Batch, Snapshot, Table

WORK: Final = 256
"""Rows that one step looks at, roughly: most of what a step takes is then still its sync."""
_ROW: Final = 3
"""Operations that the removal of one row asks for at most: the row, its value, its event."""


class Places:
    """Where the last step stood that could not finish an event, and which rows of large events were found alive. Of this
    process only: without them work is done again, to no effect."""

    def __init__(self) -> None:
        self._within = (0, 0)
        """A revision, and how many keys of its event the sweep in hand has done. The event may be gone by the next step."""
        self._alive: dict[int, int] = {}

    def within(self, revision: int) -> int:
        """How many keys of an event were done already."""
        return self._within[1] if self._within[0] == revision else 0

    def stand(self, revision: int, index: int) -> None:
        self._within = (revision, index)

    def alive(self, revision: int) -> int:
        """Up to which key of an event all versions are known to be gone."""
        return self._alive.get(revision, 0)

    def found_alive(self, revision: int, index: int) -> None:
        if len(self._alive) >= 4096:
            self._alive.clear()
        if index:
            self._alive[revision] = index


class Sweep:
    """What one step finds. Nothing is written here: `into` says what is to be removed."""

    def __init__(
        self,
        snapshot: Snapshot,
        keyspace: int,
        pinned: tuple[int, ...],
        places: Places,
        work: int,
        operations: int,
    ) -> None:
        """`operations`: what `into` may add to a batch at most, `_ROW` or more."""
        self._snapshot = snapshot
        self._keyspace = keyspace
        self._pinned = pinned
        self._places = places
        self._left = work
        self._room = operations
        self._rows: dict[bytes, bytes | None] = {}
        """Rows of versions that go, each with the place of its value."""
        self._ids: set[bytes] = set()
        self._touched: dict[int, None] = {}
        """Revisions that lost something."""
        self.horizon = 0
        """The highest revision that replaced something that goes."""
        self.buried = 0
        """The newest deletion that goes."""
        self.size = 0

    @property
    def versions(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> int:
        return len(self._ids)

    def versions_beyond(self, after: int, target: int, most: int) -> int:
        """Finds the versions that were replaced up to the target, but for each key's newest `most` as of then.
        Returns how far it came; not further than work and batch allow, so that it is to be called again from there."""
        for revision, entry in self._events(after, target):
            keys = entry.keys
            for index in range(self._places.within(revision), len(keys)):
                if layout.keyspace_of(keys[index]) == self._keyspace and not self._older(
                    keys[index], revision, most
                ):
                    self._places.stand(revision, index)
                    return after
                if self._spent and index + 1 < len(keys):
                    self._places.stand(revision, index + 1)
                    return after
            self._places.stand(revision, 0)
            after = revision
            if self._spent:
                return after
        return target

    def ids_of(self, after: int, target: int) -> int:
        """Finds the commit ids of the keyspace up to the target; returns how far it came."""
        for revision, entry in self._events(after, target):
            if entry.badge == self._keyspace and self._is_known(entry, revision):
                self._ids.add(entry.id)
                self._room -= 1
                self._touch(revision)
                self._left -= 1
            after = revision
            if self._spent:
                return after
        return target

    @property
    def _spent(self) -> bool:
        return self._left <= 0 or self._room < _ROW

    def into(self, batch: Batch) -> None:
        """Adds to a batch that everything that was found goes, and events that are thereby empty."""
        for row, place in self._rows.items():
            batch.delete(Table.VERSIONS, row)
            if place is not None:
                batch.delete(Table.VALUES, place)
        for id in self._ids:
            batch.delete(Table.COMMITS, id)
            self.size += len(id) + 8 + ROW_COST
        for revision in self._touched:
            raw = self._snapshot.event(revision)
            if raw is not None and not self._lives(revision, raw):
                batch.drop(revision)
                self.size += len(raw) + 8 + ROW_COST

    def _events(self, after: int, target: int) -> Iterator[tuple[int, layout.Entry]]:
        if after < target:
            for revision, raw in self._snapshot.feed(after):
                if revision > target:
                    return
                self._left -= 1
                yield revision, layout.entry_of(raw)

    def _older(self, key: bytes, revision: int, most: int) -> bool:
        """Finds what goes below the version that a revision wrote of a key. Whether that was all; if not, the rest is found
        when what was found has gone."""
        cursor = self._snapshot.cursor(Table.VERSIONS)
        wanted = layout.versioned(key, revision)
        self._left -= 1
        first = row = cursor.seek(wanted)
        if first is None or first[0] != wanted:
            return True  # removed by an earlier step: what is below a later version is met there
        past = layout.past(wanted)
        newer, number, stays = revision, 0, False
        while (row := cursor.next()) is not None and row[0] < past:
            self._left -= 1
            older = layout.revision_of(row[0])
            if row[0] in self._rows:
                newer = older
                continue
            number += 1
            if number < most or self._holds(older, newer):
                stays = True
            elif self._room < _ROW:
                return False
            else:
                self._goes(row, newer)
            newer = older
        if first[1] == layout.DELETED and not stays and most == 1:
            if self._room < _ROW:
                return False
            self._goes(first, revision)
            self.buried = max(self.buried, revision)
        return True

    def _holds(self, older: int, newer: int) -> bool:
        """Whether a pin is in the time during which a version was in force."""
        at = bisect_left(self._pinned, older)
        return at < len(self._pinned) and self._pinned[at] < newer

    def _goes(self, row: tuple[bytes, bytes], replaced: int) -> None:
        place = layout.place_of(*row)
        value = None if place is None else self._snapshot.get(Table.VALUES, place)
        self._rows[row[0]] = place
        self._room -= 1 if place is None else 2
        self._touch(layout.revision_of(row[0]))
        self.horizon = max(self.horizon, replaced)
        self.size += len(row[0]) + len(row[1]) + ROW_COST
        if value is not None:
            self.size += len(value) + layout.PLACE_SIZE + ROW_COST

    def _touch(self, revision: int) -> None:
        """Its event may go."""
        if revision not in self._touched:
            self._touched[revision] = None
            self._room -= 1

    def _lives(self, revision: int, raw: bytes) -> bool:
        entry = layout.entry_of(raw)
        for index in range(self._places.alive(revision), len(entry.keys)):
            row = layout.versioned(entry.keys[index], revision)
            if row not in self._rows and self._snapshot.get(Table.VERSIONS, row) is not None:
                self._places.found_alive(revision, index)
                return True
        return entry.id not in self._ids and self._is_known(entry, revision)

    def _is_known(self, entry: layout.Entry, revision: int) -> bool:
        """Whether the event's commit id leads to it: one that was forgotten may have come again, and leads elsewhere."""
        return bool(entry.id) and self._snapshot.get(Table.COMMITS, entry.id) == layout.pack(revision)
