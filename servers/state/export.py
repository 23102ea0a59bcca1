"""What is kept of a stretch of revisions, for a backup: events with the versions and values that are left of them.

Stretches come newest first, each out of a short snapshot of its own. So a backup holds no pages, and what it copied is all
the same as consistent as one snapshot of the end: compaction removes a version only with or after all that is older, a
deletion last of all. Whoever goes down the feed and finds a version has therefore seen what replaced it, or nothing of the
key is left to be found.

A stretch is bounded by the rows that are looked at, and by their size, so that whoever wants to commit waits for one at
most; a transaction that is larger comes in parts.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from atoll.ipc.system.state import Outline, Stretch

from . import horizons, layout
from .engine import Engine, Snapshot, Table
from .versions import time_of

WORK: Final = 64
"""Rows that one stretch looks at, roughly."""
SIZE: Final = 512 << 10
"""Bytes of the records of one stretch, where it is not of one revision."""
WIDEST: Final = 1 << 16
"""Revisions of one stretch at most, where few are left in the feed."""
PIECE: Final = 128 << 10
"""Bytes of one message."""


class Record(msgspec.Struct, array_like=True, frozen=True):
    """What is left of one revision, or a part of it."""

    revision: int
    event: bytes
    known: bool
    """Whether its commit id leads to it."""
    rows: list[tuple[int, bytes | None]]
    """By number in the event's `keys`, the value; None: the key was deleted. Others are no longer kept."""


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(list[Record]).decode


class Block(NamedTuple):
    """Records of all revisions above `down_to` up to where the last block ended; or a part of the highest."""

    down_to: int
    records: list[Record]


def outline(engine: Engine) -> Outline:
    """What there is to be exported, in one snapshot."""
    with engine.snapshot() as snapshot:
        head = snapshot.bounds()[1]
        return Outline(
            snapshot.get(Table.META, layout.IDENTITY_KEY) or b"",
            int.from_bytes((snapshot.get(Table.META, layout.OWNER_KEY) or b"")[:8], "big"),
            head,
            time_of(snapshot, head),
            {keyspace: horizons.encode(progress) for keyspace, progress in horizons.all_of(snapshot)},
        )


def blocks(engine: Engine, upto: int, down_to: int, keyspaces: frozenset[int]) -> Iterator[Block]:
    """All that is kept above `down_to` up to `upto`, newest first; of these keyspaces, if there are any."""
    width = WORK // 2
    while upto > down_to:
        lowest = max(down_to, upto - width)
        looked = _Looked(keyspaces)
        with engine.snapshot() as snapshot:
            records = looked.between(snapshot, lowest, upto)
        if records is None:
            width = (upto - lowest) // 2
            if not width:
                yield from _parts(engine, upto, keyspaces)
                width, upto = 1, lowest
            continue
        yield Block(lowest, records)
        upto = lowest
        if looked.rows < WORK // 2:
            width = min(2 * width, WIDEST)


def pieces(upto: int, source: Iterator[Block]) -> Iterator[Stretch]:
    """Blocks as messages. While one is not whole, its position is where it began."""
    for block in source:
        data = encode(block.records)
        for offset in range(0, len(data), PIECE):
            more = offset + PIECE < len(data)
            yield Stretch(upto if more else block.down_to, offset, data[offset : offset + PIECE], more)
        upto = block.down_to


def _parts(engine: Engine, revision: int, keyspaces: frozenset[int]) -> Iterator[Block]:
    """A large transaction, a part out of a snapshot each."""
    first = 0
    while True:
        with engine.snapshot() as snapshot:
            raw = snapshot.event(revision)
            entry = None if raw is None else layout.entry_of(raw)
            last = first + WORK
            record = None
            if raw is not None and entry is not None:
                record = _record(snapshot, revision, raw, entry, keyspaces, first, last)
        done = entry is None or last >= len(entry.keys)
        yield Block(revision - 1 if done else revision, [record] if record is not None else [])
        if done:
            return
        first = last


class _Looked:
    """Counts what one block has cost."""

    def __init__(self, keyspaces: frozenset[int]) -> None:
        self._keyspaces = keyspaces
        self.rows = 0
        self._size = 0

    def between(self, snapshot: Snapshot, lowest: int, upto: int) -> list[Record] | None:
        """The records of a block; None: it is too large."""
        found: list[Record] = []
        for revision, raw in snapshot.feed(lowest):
            if revision > upto:
                break
            entry = layout.entry_of(raw)
            self.rows += 1 + len(entry.keys)
            if self.rows > 2 * WORK or self._size > SIZE:
                return None
            record = _record(snapshot, revision, raw, entry, self._keyspaces)
            if record is not None:
                found.append(record)
                self._size += len(raw) + sum(len(value) for _, value in record.rows if value is not None)
        return found


def _record(
    snapshot: Snapshot,
    revision: int,
    raw: bytes,
    entry: layout.Entry,
    keyspaces: frozenset[int],
    first: int = 0,
    last: int | None = None,
) -> Record | None:
    """What is left of a revision's keys from one number to another; None: it wrote nothing in the keyspaces."""
    rows = []
    concerned = not keyspaces
    for index, key in enumerate(entry.keys[first:last], first):
        if keyspaces and layout.keyspace_of(key) not in keyspaces:
            continue
        concerned = True
        row = layout.versioned(key, revision)
        stored = snapshot.get(Table.VERSIONS, row)
        if stored is not None:
            rows.append((index, layout.value_of(snapshot, row, stored)))
    if not concerned:
        return None
    known = bool(entry.id) and snapshot.get(Table.COMMITS, entry.id) == layout.pack(revision)
    return Record(revision, raw, known, rows)
