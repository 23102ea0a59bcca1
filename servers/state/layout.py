"""How keys, versions and events lie in an engine's tables; docs/decisions/0002-store-layout.md argues for it.

A key's *absolute* form is its keyspace's number in four bytes, big end first, and the key itself. One row of
VERSIONS is one write of one key:

    keyspace (4) | key, every 00 as 00 FF | 00 00 | all ones - revision (8)
        ->   00 (deleted)   or   01 value   or   02 index (4): the value is VALUES[revision (8) | index (4)]

The escape keeps the order of keys and lets none be a prefix of another's rows. The revision is inverted, so
that the newest version comes first: "now" and "as of R" are each one seek forward, and no row of a current
state is kept beside. Values above `INLINE` bytes lie apart, where rows are appended: a commit of scattered
keys then dirties pages of small rows only.

The feed holds one event a revision: the time in eight bytes (so that a search by time decodes nothing), then
`Entry`.
"""

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from .engine import Batch, Broken, Snapshot, Table

KEYSPACE_SIZE: Final = 4
PLACE_SIZE: Final = 12
"""Bytes of a key in VALUES."""
OVERHEAD: Final = 10
"""Bytes that `versioned` adds to an escaped key."""
LAST: Final = (1 << 64) - 1
READABLE: Final = 1
"""The oldest format whose rows are read as they lie."""
FORMAT: Final = 4
"""What this version writes. 2: something was removed, and who knows nothing of horizons must not read it. 3: a log lies
beside the database, and who knows nothing of it would read what is not yet there, or no longer. 4: the log's records bear
a salt, and who knows nothing of it would find none."""
FORMAT_KEY: Final = b"format"
OWNER_KEY: Final = b"owner"
IDENTITY_KEY: Final = b"identity"
IDENTITY_SIZE: Final = 16

_number = struct.Struct(">Q")
_prefix = struct.Struct(">I")
pack = _number.pack
INLINE: Final = 96
"""Bytes of a value that still lies in its key's row."""
DELETED: Final = b"\0"
_PRESENT: Final = b"\1"
_APART: Final = b"\2"


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """What the feed says of one transaction besides its time. Values are not here but in VERSIONS, under
    (key, revision)."""

    badge: int
    """Keyspace of the owner; 0 is the kernel's own capability."""
    call: str
    trace: int
    note: str
    id: bytes
    """The commit id as it lies in COMMITS, or empty."""
    reply: bytes
    keys: list[bytes]
    """Absolute keys, in the order written."""
    others: tuple[int, ...] = ()
    """Keyspaces of the parties that wrote under a shared transaction, besides the owner's."""


encode_entry = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode


def prefix(keyspace: int) -> bytes:
    return _prefix.pack(keyspace)


def keyspace_of(key: bytes) -> int:
    """The keyspace of an absolute key."""
    return int(_prefix.unpack_from(key)[0])


def escape(key: bytes) -> bytes:
    """Where the rows of an absolute key, or of the first key at or after it, begin."""
    return key[:KEYSPACE_SIZE] + key[KEYSPACE_SIZE:].replace(b"\0", b"\0\xff")


def unescape(row: bytes) -> bytes:
    return row[:KEYSPACE_SIZE] + row[KEYSPACE_SIZE:].replace(b"\0\xff", b"\0")


def versioned(key: bytes, revision: int) -> bytes:
    """The row of the newest version of an absolute key at or before `revision` is the first at or after this
    one."""
    return escape(key) + b"\0\0" + pack(LAST - revision)


def revision_of(row: bytes) -> int:
    return LAST - int(_number.unpack_from(row, len(row) - 8)[0])


def key_of(row: bytes) -> bytes:
    """The absolute key of a VERSIONS row."""
    return unescape(row[:-OVERHEAD])


def past(row: bytes) -> bytes:
    """Where the rows of the next key begin, given a VERSIONS row: no row of the same key lies at or after
    this."""
    return row[: -OVERHEAD + 1] + b"\1"


def place(revision: int, index: int) -> bytes:
    """Key in VALUES of the value that the `index`th write of a revision left there."""
    return pack(revision) + _prefix.pack(index)


def put_versions(
    batch: Batch,
    writes: list[tuple[bytes, bytes | None]],
    revision: int,
    numbers: Iterable[int] | None = None,
) -> list[bytes]:
    """Adds the rows of all writes of a revision, whose absolute keys differ; gives the keys in order. `numbers`: of each,
    where it stood among the revision's writes, if these are no longer all."""
    suffix = b"\0\0" + pack(LAST - revision)
    keys = []
    for index, (key, value) in enumerate(writes) if numbers is None else zip(numbers, writes, strict=True):
        keys.append(key)
        row = key[:KEYSPACE_SIZE] + key[KEYSPACE_SIZE:].replace(b"\0", b"\0\xff") + suffix
        if value is None:
            batch.put(Table.VERSIONS, row, DELETED)
        elif len(value) <= INLINE:
            batch.put(Table.VERSIONS, row, _PRESENT + value)
        else:
            batch.put(Table.VERSIONS, row, _APART + _prefix.pack(index))
            batch.put(Table.VALUES, place(revision, index), value)
    return keys


def place_of(row: bytes, stored: bytes) -> bytes | None:
    """Where in VALUES the value of a VERSIONS row lies; None: in the row itself, or nowhere."""
    return pack(revision_of(row)) + stored[1:] if stored[:1] == _APART else None


def value_of(snapshot: Snapshot, row: bytes, stored: bytes) -> bytes | None:
    """The value that a VERSIONS row stands for; None: the key was deleted. Raises `Broken` if the row makes
    no sense."""
    kind = stored[:1]
    if kind == _PRESENT:
        return stored[1:]
    if kind == DELETED:
        return None
    at = place_of(row, stored)
    value = None if at is None else snapshot.get(Table.VALUES, at)
    if value is None:
        raise Broken(
            f"the version of {key_of(row)!r} at revision {revision_of(row)} has no value: check the store"
        )
    return value


def event(time: int, entry: Entry) -> bytes:
    return pack(time) + encode_entry(entry)


def time_of(raw: bytes) -> int:
    """Nanoseconds since the epoch."""
    return int(_number.unpack_from(raw)[0])


def entry_of(raw: bytes) -> Entry:
    return _decode_entry(memoryview(raw)[8:])
