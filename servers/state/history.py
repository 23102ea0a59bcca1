"""Revisions and history over an engine: what was written, by whom, and how it stood at any moment.

Everything here reads. Writing is `group.py`; how keys, versions and events lie in the engine is `layout.py`;
how far back is `horizons.py`. All keys are absolute. Every method opens one short snapshot, so that what it
returns is of one state, and no reader pins pages for long.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from msgspec.structs import replace

from atoll.ipc.errors import Conflict, TooLarge
from atoll.ipc.system.state import Ahead, AsOf, Change, Compacted, Item, Only, Page, Provenance

from . import horizons, layout
from .engine import Engine, Snapshot, Table
from .versions import Items, backward, forward, newest, time_of

PAGE_BYTES: Final = 512 << 10
"""Bytes of keys and values in one `Page` or `Change` at most; a single larger item still goes alone."""
AROUND: Final = 24
"""Bytes of an item besides its key and its value."""


HISTORY_BYTES: Final = 16 << 20
"""Bytes of keys and values in one answer of `history` at most."""
LOOK: Final = 2048
"""Revisions that one look for changes reads at most, so that a server's other work is never far behind."""

Names = Callable[[int], str]
"""The name of a keyspace, given its number."""


class History:
    def __init__(self, engine: Engine, names: Names) -> None:
        self.engine = engine
        self._names = names

    def conflict(self, key: bytes, expected: int, found: int) -> Conflict:
        """An absolute key was expected at one revision, and is at another."""
        name = self._names(layout.keyspace_of(key))
        return Conflict(key[layout.KEYSPACE_SIZE :], expected, found, name)

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
            at = moment(snapshot, as_of, least, key, key)
            row = newest(snapshot, key, at)
            if row is None:
                return None
            found = Items(snapshot).of(key, *row)
            return None if found.value is None else found

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
            at = moment(snapshot, as_of, least, start, end)
            rows = backward(snapshot, start, end, at) if reverse else forward(snapshot, start, end, at)
            items: list[Item] = []
            size, told = 0, Items(snapshot)
            for row, stored in rows:
                found = told.of(layout.key_of(row), row, stored)
                if found.value is None:
                    continue
                size += len(found.key) + len(found.value) + AROUND
                if items and (len(items) >= limit or size > PAGE_BYTES):
                    return Page(items, True, at)
                items.append(found)
            return Page(items, False, at)

    def history(self, key: bytes, limit: int, least: int = 0) -> list[Item]:
        """Versions of a key that are kept, newest first; deletions have the value None. Raises `TooLarge`."""
        with self.engine.snapshot() as snapshot:
            moment(snapshot, None, least, key, key)
            cursor = snapshot.cursor(Table.VERSIONS)
            first = layout.versioned(key, layout.LAST)
            past = layout.past(first)
            items: list[Item] = []
            size, told = 0, Items(snapshot)
            row = cursor.seek(first)
            while row is not None and row[0] < past and len(items) < limit:
                found = told.of(key, *row)
                size += len(key) + len(found.value or b"")
                if size > HISTORY_BYTES:
                    name = key[layout.KEYSPACE_SIZE :][:20]
                    raise TooLarge(
                        f"the history of {name!r}...", size, HISTORY_BYTES, do="ask for fewer versions"
                    )
                items.append(found)
                row = cursor.next()
            return items

    def who(self, revision: int, keyspace: int | None) -> Provenance | None:
        """Who wrote a revision; None if it wrote nothing in the keyspace (None: any). Raises `Compacted` where
        nobody knows any more."""
        with self.engine.snapshot() as snapshot:
            last = snapshot.bounds()[1]
            if revision > last:
                raise Ahead(revision=revision, head=last)
            raw = snapshot.event(revision)
            if raw is None:
                kept = horizons.highest(snapshot, horizons.of_keyspace(keyspace or 0))
                if 0 < revision <= kept.horizon:
                    raise Compacted(revision=revision, horizon=kept.horizon)
                return None
            entry = layout.entry_of(raw)
            # The kernel writes the rows of several keyspaces in the name of none.
            if (
                keyspace is not None
                and keyspace not in (entry.badge, *entry.others)
                and not any(layout.keyspace_of(key) == keyspace for key in entry.keys)
            ):
                return None
            return self._provenance(entry, layout.time_of(raw))

    def revision_at(self, seconds: float, badge: int = 0) -> int:
        """The last revision at or before a time, or one that reads the same in the keyspace (0: in all)."""
        with self.engine.snapshot() as snapshot:
            kept = horizons.highest(snapshot, horizons.of_keyspace(badge))
            return horizons.at_time(snapshot, int(seconds * 1e9), kept)

    def changes(
        self, after: int, prefix: bytes, limit: int, *, past: bool = True, only: Only = "all"
    ) -> tuple[list[Change], int, bool]:
        """Up to `limit` transactions after a revision that wrote a key with the prefix, and not much more than `PAGE_BYTES`;
        the revision that was looked at last; and whether there is more to look at: one call looks at `LOOK` revisions
        at most. What is more than `PAGE_BYTES` by itself is told by its first items and `more`: `parts` has them all.

        Without `past` each key that was written comes as it is now, and who wrote what has been replaced
        since stays untold.

        Raises `Compacted` when transactions after `after` are no longer kept, `Ahead` when it is in the
        future.
        """
        found: list[Change] = []
        current: dict[bytes, Item] | None = None if past else {}
        with self.engine.snapshot() as snapshot:
            seen, size = after, 0
            last = snapshot.bounds()[1]
            _complete_after(snapshot, after, prefix)
            if after > last:
                raise Ahead(revision=after, head=last)
            for revision, raw in snapshot.feed(after):
                change, _ = self._part(snapshot, revision, raw, prefix, current, only)
                seen = revision
                if change is not None:
                    found.append(change)
                    size += sum(len(each.key) + len(each.value or b"") for each in change.items)
                if len(found) >= limit or size >= PAGE_BYTES or seen - after >= LOOK:
                    break
            return found, seen, seen < last

    def written(self, after: int) -> Iterator[tuple[int, list[bytes]]]:
        """Revisions after one that are in the feed, `LOOK` of them at most, and the absolute keys that each wrote."""
        with self.engine.snapshot() as snapshot:
            for revision, raw in islice(snapshot.feed(after), LOOK):
                yield revision, layout.entry_of(raw).keys

    def parts(
        self, revision: int, prefix: bytes, *, past: bool = True, only: Only = "all"
    ) -> Iterator[Change]:
        """What one revision wrote under a prefix, in parts of `PAGE_BYTES`, each read when it is asked for; nothing, if that
        is nothing. `past` and `only`, and what it raises, as in `changes`."""
        at: int | None = 0
        begun: Change | None = None
        while at is not None:
            with self.engine.snapshot() as snapshot:
                _complete_after(snapshot, revision - 1, prefix)
                raw = snapshot.event(revision)
                if raw is None:
                    return
                change, at = self._part(snapshot, revision, raw, prefix, None if past else {}, only, at)
            if change is None and begun is not None:
                # The rest is as it is now, and as such not told: an end there must be, or more of it is waited for.
                change = replace(begun, items=[], more=False, position=revision)
            if change is not None:
                yield change
            begun = change

    def _part(
        self,
        snapshot: Snapshot,
        revision: int,
        raw: bytes,
        prefix: bytes,
        current: dict[bytes, Item] | None,
        only: Only,
        at: int = 0,
    ) -> tuple[Change | None, int | None]:
        """What a revision wrote under a prefix from key number `at` on, as far as it goes into a page; and the number of the
        key that comes next, None if that is all. `current` is for who may not see the past: keys as they are in the
        snapshot, as far as they were asked for."""
        entry = layout.entry_of(raw)
        keys = [key for key in entry.keys if key.startswith(prefix)]
        time, told = layout.time_of(raw), Items(snapshot)
        items: list[Item] = []
        size, rest = 0, None
        for number, key in enumerate(keys[at:], at):
            if current is None:
                found = _version_at(snapshot, told, key, revision)
            else:
                found = current.get(key) or _version_now(snapshot, told, key)
            if found is None or not _told(found.value is None, only):
                continue
            size += len(key) + len(found.value or b"") + AROUND
            if items and size > PAGE_BYTES:
                rest = number
                break
            items.append(found)
            if current is not None:
                # A large value that stands for many small ones of the past is in memory once.
                current[key] = found
        if not keys or (not items and only != "all"):
            return None, None
        stands = current is None or any(each.revision == revision for each in items)
        who = self._provenance(entry, time) if stands else Provenance(0, "", "", 0, time, "")
        position = revision if rest is None else revision - 1
        return Change(revision, time, items, who, more=rest is not None, position=position), rest

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


def _version_at(snapshot: Snapshot, told: Items, key: bytes, revision: int) -> Item | None:
    """What a revision wrote of a key, if that is still there."""
    row = layout.versioned(key, revision)
    stored = snapshot.get(Table.VERSIONS, row)
    return None if stored is None else told.of(key, row, stored)


def _version_now(snapshot: Snapshot, told: Items, key: bytes) -> Item | None:
    """A key that is written as it is now. None is left out, so that a view that follows has all that was written up to a
    change's revision, or what replaced it."""
    row = newest(snapshot, key, layout.LAST)
    return None if row is None else told.of(key, *row)


def _told(deleted: bool, only: Only) -> bool:
    return only == "all" or deleted == (only == "deletes")


def moment(snapshot: Snapshot, as_of: AsOf, least: int, start: bytes, end: bytes | None) -> int:
    """The revision that `as_of` means in a snapshot, for a read from one key to another. Raises `Compacted`
    or `Ahead`."""
    last = snapshot.bounds()[1]
    if least > last:
        raise Ahead(revision=least, head=last)
    if as_of is None:
        return last
    keyspaces = horizons.span(start, end)
    if isinstance(as_of, float):
        at = horizons.at_time(snapshot, int(as_of * 1e9), horizons.highest(snapshot, keyspaces))
    else:
        at = as_of
    if at > last:
        raise Ahead(revision=at, head=last)
    refusal = horizons.refusal(snapshot, at, keyspaces)
    if refusal is not None:
        raise refusal
    return at


def _complete_after(snapshot: Snapshot, after: int, prefix: bytes) -> None:
    """Raises `Compacted` unless the feed of a prefix has everything that was written after a revision."""
    kept = horizons.highest(snapshot, horizons.span(prefix, prefix + b"\xff" if len(prefix) >= 4 else None))
    if after < kept.horizon:
        raise Compacted(revision=after, horizon=kept.horizon)
