"""Makes a store out of a backup, as of one revision.

Segments are read together, in the order of revisions, so that the engine appends; in memory is one frame of each that is
read at the time, and one batch. Which rows count, `chain.py` says. What is made has an identity and an owner of its own: no
process that wrote the backed-up store can write this one, and a backup of it goes elsewhere.
"""

import heapq
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from atoll.ipc import chance

from .. import horizons, layout
from ..check import check_apart
from ..engine import Batch, Engine, Table
from ..export import Record
from ..keyspaces import Keyspaces
from ..lmdb_engine import LmdbEngine
from . import archive, chain
from .archive import Entry, Manifest, Span
from .chain import Standing
from .faults import Damaged, Refused, needing_room
from .segment import AFRESH, MAIN, Segment

BATCH: Final = 4 << 20
"""Bytes of one batch, roughly."""
_OWN: Final = 4
"""Operations of the store's own rows, and one keyspace's progress."""
MAP: Final = 64 << 30
LEAST: Final = 1 << 20
"""Bytes without which no store is begun."""


class Point(NamedTuple):
    """A moment that can be restored: the segment that it lies in, and the last revision that there was."""

    segment: int
    revision: int


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    image: str
    revision: int
    time: int
    boot: int
    """Boots of the new node are counted on from here: no boot that this history tells of comes twice."""
    revisions: int
    versions: int


class Row(NamedTuple):
    """What of one revision is to be in the store."""

    revision: int
    event: bytes
    known: bool
    writes: dict[int, bytes | None]


def point(folder: Path, manifest: Manifest, at: int | float | None) -> Point:
    """The point that a revision, a time in seconds, or None for the newest, means. Raises `Refused` outside of what is
    covered, with the range, and `Damaged`."""
    entries = manifest.segments
    if at is None:
        return Point(len(entries) - 1, entries[-1].upto)
    index = _segment_of(entries, at)
    found = 0
    while index is not None and not found and index >= 0:
        with archive.segment(folder, entries[index]) as segment:
            found = segment.last_at(int(at * 1e9)) if isinstance(at, float) else segment.last_upto(at)
        if not found:
            index = index - 1 if _stands_before(entries, index, at) else None
    if index is None or not found or found <= entries[index].floor:
        raise Refused(
            f"{_said(at)} is not in the backup, which covers {covers(manifest)}: ask for one of those"
        )
    return Point(index, found)


def _segment_of(entries: list[Entry], at: int | float) -> int | None:
    """The segment that a moment lies in; None: it lies behind them all."""
    for index, entry in enumerate(entries):
        if at <= entry.upto if isinstance(at, int) else at * 1e9 < entry.time:
            return index
    if isinstance(at, float) and at * 1e9 <= entries[-1].taken:
        return len(entries) - 1
    return None


def _stands_before(entries: list[Entry], index: int, at: int | float) -> bool:
    """Whether nothing was written from the end of the segment before to a moment for which this one has nothing: compaction
    may have taken that, unless the other's backup was begun later than the moment."""
    before = entries[index - 1].taken if index else 0
    return entries[index].floor <= entries[index].after or (isinstance(at, float) and at * 1e9 <= before)


def covers(manifest: Manifest) -> str:
    """The ranges in words."""
    return (
        ", ".join(f"revisions {span.first} to {span.last}{_times(span)}" for span in archive.spans(manifest))
        or "none"
    )


def _times(span: Span) -> str:
    began = f"{_clock(span.began)} to " if span.began else "until "
    return f" ({began}{_clock(span.ended)})"


def _clock(nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(nanoseconds / 1e9).astimezone():%Y-%m-%dT%H:%M:%S%z}"


def _said(at: int | float) -> str:
    return f"revision {at}" if isinstance(at, int) else f"the time {_clock(int(at * 1e9))}"


def restore(folder: Path, store: Path, at: int | float | None) -> Restored:
    """Makes the store in a new folder, and checks it. Raises `Refused`, `NoRoom`, `Damaged`."""
    manifest = archive.existing(folder)
    where = point(folder, manifest, at)
    if store.exists():
        raise Refused(f"{store} is there already: a store is restored into a new folder")
    try:
        with needing_room(store.parent, "nothing was restored"):
            _probe(store.parent)
            engine = LmdbEngine(store, limit=MAP, reserve=0, map_size=MAP)
            try:
                restored = rebuild(folder, manifest, where, engine)
            finally:
                engine.close()
        return _proved(folder, store, restored)
    except BaseException:
        shutil.rmtree(store, ignore_errors=True)
        raise


def _proved(folder: Path, store: Path, restored: Restored) -> Restored:
    """With what the check counted. Raises `Damaged` where it finds a breach."""
    told = check_apart(str(store))
    if isinstance(told, str):
        raise Damaged(f"what {folder} makes is no store: {told}")
    if told.breaches:
        further = len(told.breaches) - 1
        raise Damaged(f"what {folder} makes is not whole: {told.breaches[0]} (and {further} more)")
    return msgspec.structs.replace(restored, revisions=told.revisions, versions=told.versions)


def _probe(folder: Path) -> None:
    """Raises OSError where there is no room for the files with which a store begins. The database maps one of them before
    it has its pages, and would be killed."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, LEAST)


def rebuild(folder: Path, manifest: Manifest, where: Point, engine: Engine) -> Restored:
    """Fills an empty engine with what the backup has as of a point."""
    entries = manifest.segments[: where.segment + 1]
    with ExitStack() as opened:
        segments = [opened.enter_context(archive.segment(folder, entry)) for entry in entries]
        standing = segments[-1].trailer.standing
        filling = _Filling(engine, where.revision)
        for row in merged(segments, standing, where.revision):
            filling.add(row)
        boot = max(entry.boot for entry in manifest.segments)
        filling.finish(standing, boot)
    return Restored(
        node=manifest.node,
        image=manifest.image,
        revision=where.revision,
        time=filling.time,
        boot=boot,
        revisions=0,
        versions=0,
    )


def merged(segments: list[Segment], standing: list[Standing], upto: int) -> Iterator[Row]:
    """What of each revision counts, in order; nothing of those of which nothing does."""
    bases = {each.keyspace: each.base for each in standing}
    read = [_counting(segments, bases, upto)]
    read += [
        _counting_afresh(
            segment, {number for number, base in bases.items() if base == segment.trailer.after}, upto
        )
        for segment in segments
        if segment.trailer.after and segment.trailer.after in bases.values()
    ]
    parts = heapq.merge(*read, key=_revision)
    for revision, same in groupby(parts, _revision):
        event, known = b"", False
        writes: dict[int, bytes | None] = {}
        for record in same:
            event, known = record.event, known or record.known
            writes.update(record.rows)
        if writes or known or revision == upto:
            yield Row(revision, event, known, writes)


def _revision(record: Record) -> int:
    return record.revision


def _counting(segments: list[Segment], bases: dict[int, int], upto: int) -> Iterator[Record]:
    """Each segment's own revisions, less what no longer counts."""
    for segment in segments:
        after = segment.trailer.after
        over = {keyspace for keyspace, base in bases.items() if base > after}
        for record in segment.rising(MAIN, upto):
            yield _without(record, over) if over else record


def _counting_afresh(segment: Segment, keyspaces: set[int], upto: int) -> Iterator[Record]:
    """What keyspaces that begin with this segment had before it."""
    for record in segment.rising(AFRESH, upto):
        keys = layout.entry_of(record.event).keys
        rows = [row for row in record.rows if layout.keyspace_of(keys[row[0]]) in keyspaces]
        yield msgspec.structs.replace(record, rows=rows, known=False)


def _without(record: Record, over: set[int]) -> Record:
    keys = layout.entry_of(record.event).keys
    rows = [row for row in record.rows if layout.keyspace_of(keys[row[0]]) not in over]
    return msgspec.structs.replace(record, rows=rows)


class _Filling:
    """Writes a store from its first revision to its last, a batch at a time."""

    def __init__(self, engine: Engine, upto: int) -> None:
        self._engine = engine
        self._upto = upto
        self._most = min(BATCH, engine.maximum_batch // 4)
        self._operations = engine.maximum_operations
        self._batch = Batch()
        self._ids: dict[bytes, int] = {}
        """Commit ids of the batch."""
        self.time = 0

    def add(self, row: Row) -> None:
        entry = layout.entry_of(row.event)
        large = len(row.event) + sum(len(value or b"") for value in row.writes.values()) > self._most
        # A version and its value each, the event, its id, and an event that goes for it.
        if large or self._batch.operations + 2 * len(row.writes) + 3 > self._operations:
            self._write()  # it may fill a batch of its own
        self._batch.append(row.revision, row.event)
        numbers = sorted(row.writes)
        writes = [(entry.keys[number], row.writes[number]) for number in numbers]
        layout.put_versions(self._batch, writes, row.revision, numbers)
        if entry.id and (row.known or row.revision == self._upto):
            self._know(entry.id, row.revision)
        self.time = layout.time_of(row.event)
        if self._batch.size >= self._most:
            self._write()

    def _know(self, id: bytes, revision: int) -> None:
        """The id leads here. It may have led elsewhere, and have been given anew once it was forgotten; an event that was
        kept for it alone goes."""
        before = self._ids.get(id)
        if before is None:
            with self._engine.snapshot() as snapshot:
                raw = snapshot.get(Table.COMMITS, id)
            before = 0 if raw is None else int.from_bytes(raw, "big")
        if before:
            self._write()
            with self._engine.snapshot() as snapshot:
                raw = snapshot.event(before)
                entry = None if raw is None else layout.entry_of(raw)
                left = entry is not None and any(
                    snapshot.get(Table.VERSIONS, layout.versioned(key, before)) is not None
                    for key in entry.keys
                )
            if not left:
                self._batch.drop(before)
        self._batch.put(Table.COMMITS, id, layout.pack(revision))
        self._ids[id] = revision

    def _write(self) -> None:
        self._engine.commit(self._batch, reserved=True)
        self._batch = Batch()
        self._ids.clear()

    def finish(self, standing: list[Standing], boot: int) -> None:
        """The store's own rows go last: without them it is none."""
        self._write()
        keyspaces = Keyspaces(self._engine)
        for each in standing:
            if keyspaces.exists(each.keyspace):
                if self._batch.operations + _OWN > self._operations:
                    self._write()
                horizons.put(self._batch, each.keyspace, chain.as_of(each, self._upto))
        batch = self._batch
        batch.put(Table.META, layout.FORMAT_KEY, layout.FORMAT.to_bytes(4, "big"))
        batch.put(Table.META, layout.OWNER_KEY, layout.pack(boot) + chance.token(8))
        batch.put(Table.META, layout.IDENTITY_KEY, chance.token(layout.IDENTITY_SIZE))
        self._write()
