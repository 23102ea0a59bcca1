"""The write-ahead log's files: what was committed since the database's own file was last on disk as a whole.

There are three *segments*, used in turn, of which two are needed at most. A segment's *base* is a transaction of the
database; its records are the batches of the transactions after it, without a gap. Whoever has the file as it was at the base
and the records has all that was acknowledged (`checkpoint.py` sees to the first). A segment, all numbers big end first:

    0       generation (8), base (8), whether it is settled (4), size of a page (4), checksum of these and the two pages (4)
    28      that checksum (4), salt (8), checksum of these (4)
    512     generation (8), checksum (4), once it is settled that was not: the database's file is on disk up to the base
    4096    the first two pages of the file as they were at the base: all that is written there in place
    then    records: length (4), checksum of all that follows (4), generation (8), salt (8), transaction (8), the batch

A record counts if it bears its segment's *mark*, generation and salt, and the transaction after the one before it. So
nothing has to be erased when a segment is begun again, and what was cut short by a power failure is the end. The salt is
random and leaves the log to nobody: bytes of a client, in a batch or left behind the end of the records, are no record. A
segment that a version of format 3 began has none, and is read as that version read it.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from atoll.ipc.folders import sync_folder

from .engine import Batch, Broken, Row, Table

FILES: Final = ("log.0", "log.1", "log.2")
SIZE: Final = 1 << 20
"""Bytes of a segment that are preallocated. A larger batch makes its segment grow."""
_SALT: Final = 28
_SALT_SIZE: Final = 8
_SETTLED: Final = 512
_PAGES: Final = 4096

_head = struct.Struct(">QQIII")
_settled = struct.Struct(">QI")
_salt = struct.Struct(">I8sI")
_GENERATION: Final = 8
_lead = struct.Struct(">II")
"""What a record begins with: its length and its checksum, which covers the rest."""
_number = struct.Struct(">Q")


class _Rows(msgspec.Struct, array_like=True):
    """A batch without its conditions: they held when it was written down."""

    puts: dict[Table, list[Row]]
    deletes: list[tuple[Table, bytes]]
    events: list[tuple[int, bytes]]
    drops: list[int]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Rows).decode


class Head(NamedTuple):
    """What a segment says of itself."""

    generation: int
    base: int
    pages: bytes
    settled: bool
    salt: bytes
    """Empty: a version of format 3 began it."""

    @property
    def start(self) -> int:
        """Where its records begin."""
        return _PAGES + len(self.pages)

    @property
    def mark(self) -> bytes:
        """What each of its records bears."""
        return _number.pack(self.generation) + self.salt

    @property
    def around(self) -> int:
        """Bytes of a record besides its batch."""
        return _lead.size + len(self.mark) + _number.size


def new_salt() -> bytes:
    return os.urandom(_SALT_SIZE)


class Segment:
    """One file of the log. Only who holds the database's writer lock may change it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Raises OSError, also where the file is missing and may not be made."""
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
        self.path = path
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self.descriptor).st_size

    def close(self) -> None:
        os.close(self.descriptor)

    @property
    def size(self) -> int:
        """Bytes that can be written without asking the disk for room."""
        return self._size

    def generation(self) -> int:
        """As the head says, whether or not that is whole."""
        return int.from_bytes(os.pread(self.descriptor, 8, 0), "big")

    def head(self) -> Head | None:
        """None: it was never begun, a power failure cut its beginning short, or it is damaged."""
        raw = os.pread(self.descriptor, _PAGES, 0)
        if len(raw) < _PAGES:
            return None
        generation, base, settled, page, checksum = _head.unpack_from(raw)
        pages = os.pread(self.descriptor, 2 * page, _PAGES) if 512 <= page <= 1 << 16 else b""
        if not pages or zlib.crc32(pages, zlib.crc32(raw[: _head.size - 4])) != checksum:
            return None
        salt = _salt_of(raw, checksum)
        if salt is None:
            return None
        since = _settled.unpack_from(raw, _SETTLED) == (generation, zlib.crc32(raw[:8]))
        return Head(generation, base, pages, bool(settled) or since, salt)

    def begin(self, head: Head) -> int:
        """Makes it a new segment without records; gives where they begin. Not durable before `sync`."""
        self.reserve(0, SIZE)
        fixed = _head.pack(head.generation, head.base, head.settled, len(head.pages) // 2, 0)[:-4]
        checksum = zlib.crc32(head.pages, zlib.crc32(fixed))
        os.pwrite(self.descriptor, head.pages, _PAGES)
        # In one sector, which is written whole or not at all.
        os.pwrite(self.descriptor, fixed + checksum.to_bytes(4, "big") + _salted(checksum, head.salt), 0)
        return head.start

    def settle(self, generation: int) -> None:
        """The database's file is on disk up to the base. Not durable before `sync`."""
        mark = generation.to_bytes(8, "big")
        os.pwrite(self.descriptor, _settled.pack(generation, zlib.crc32(mark)), _SETTLED)

    def reserve(self, offset: int, length: int) -> None:
        """Sees that so many bytes can be written there. Raises OSError where the disk has no room."""
        if offset + length > self._size:
            os.posix_fallocate(self.descriptor, offset, length)
            self._size = offset + length

    def append(self, offset: int, mark: bytes, transaction: int, body: bytes) -> int:
        """Writes a record; gives where the next one goes. Not durable before `sync`. Raises OSError where the disk has
        no room."""
        first = mark + _number.pack(transaction)
        head = _lead.pack(len(body), zlib.crc32(body, zlib.crc32(first))) + first
        size = len(head) + len(body)
        self.reserve(offset, size)
        if os.pwritev(self.descriptor, [head, body], offset) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return offset + size

    def cut(self, offset: int) -> None:
        """Takes the record at an offset back, and is durable when it returns."""
        os.pwrite(self.descriptor, bytes(_lead.size + _GENERATION), offset)
        self.sync()

    def sync(self) -> None:
        """Raises `Broken`: the page cache may have dropped what it could not write."""
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            raise Broken(f"{self.path} could not be written to the disk: {error}") from error

    def records(self, head: Head) -> Iterator[tuple[int, bytes]]:
        """Each transaction and its batch as it was encoded, in order."""
        offset, transaction = head.start, head.base
        while True:
            found = self._record_at(offset, len(head.mark))
            if found is None or found[:2] != (head.mark, transaction + 1):
                return
            _, transaction, body = found
            yield transaction, body
            offset += head.around + len(body)

    def goes_on(self, head: Head) -> bool:
        """Whether a record lies behind the end of the records: then one in between is damaged, for each was begun when
        the one before it was on the disk."""
        end, last, rest = head.start, head.base, b""
        for transaction, body in self.records(head):
            end, last = end + head.around + len(body), transaction
        while piece := os.pread(self.descriptor, SIZE, end + len(rest)):
            rest += piece
        sought = head.mark + _number.pack(last + 2)
        at = rest.find(sought, _lead.size)
        while at >= 0:
            if self._record_at(end + at - _lead.size, len(head.mark)) is not None:
                return True
            at = rest.find(sought, at + 1)
        return False

    def headless(self, page: int) -> int:
        """The generation of two records that follow each other where the first ones are; 0: there are none such. `page`:
        bytes of a page of the database."""
        start = _PAGES + 2 * page
        for size in (_GENERATION + _SALT_SIZE, _GENERATION):
            first = self._record_at(start, size)
            if first is None:
                continue
            mark, transaction, body = first
            second = self._record_at(start + _lead.size + size + _number.size + len(body), size)
            if second is not None and second[:2] == (mark, transaction + 1):
                return int.from_bytes(mark[:_GENERATION], "big")
        return 0

    def _record_at(self, offset: int, mark_size: int) -> tuple[bytes, int, bytes] | None:
        """Mark, transaction and batch of a record that is whole."""
        around = _lead.size + mark_size + _number.size
        raw = os.pread(self.descriptor, around, offset)
        if len(raw) < around:
            return None
        length, checksum = _lead.unpack_from(raw)
        if length > self._size:
            return None
        body = os.pread(self.descriptor, length, offset + around)
        if len(body) < length or zlib.crc32(body, zlib.crc32(raw[_lead.size :])) != checksum:
            return None
        (transaction,) = _number.unpack_from(raw, around - _number.size)
        return raw[_lead.size : _lead.size + mark_size], transaction, body


def _salted(checksum: int, salt: bytes) -> bytes:
    """What a head has besides, given its checksum."""
    if not salt:
        return bytes(_salt.size)
    own = _salt.pack(checksum, salt, 0)[:-4]
    return own + zlib.crc32(own).to_bytes(4, "big")


def _salt_of(raw: bytes, checksum: int) -> bytes | None:
    """The salt of a head with that checksum; empty: it has none, and what is there is nothing, or of an earlier head. None:
    it is damaged."""
    own = raw[_SALT : _SALT + _salt.size]
    of, salt, own_checksum = _salt.unpack(own)
    if own == bytes(_salt.size):
        return b""
    if zlib.crc32(own[:-4]) != own_checksum:
        return None
    return bytes(salt) if of == checksum else b""


def encode(batch: Batch) -> bytes:
    return _encode(_Rows(batch.puts, batch.deletes, batch.events, batch.drops))


def decode(body: bytes) -> Batch:
    rows, batch = _decode(body), Batch()
    for table, puts in rows.puts.items():
        for key, value in puts:
            batch.put(table, key, value)
    for table, key in rows.deletes:
        batch.delete(table, key)
    for position, event in rows.events:
        batch.append(position, event)
    for position in rows.drops:
        batch.drop(position)
    return batch


def segments_in(folder: Path) -> list[Segment]:
    """A log for its writer, made where there is none. Raises OSError, also where the disk has no room for it."""
    segments: list[Segment] = []
    try:
        for name in FILES:
            segments.append(Segment(folder / name))
        if any(segment.size < SIZE for segment in segments):
            for segment in segments:
                segment.reserve(0, SIZE)
                os.fsync(segment.descriptor)
        # Also where all are there: whoever made them may have died before their names were on the disk.
        sync_folder(folder)
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    return segments


def newest(segments: list[Segment]) -> tuple[Segment, Head] | None:
    """The segment that was begun last, if there is one."""
    begun = [(segment, head) for segment in segments if (head := segment.head()) is not None]
    return max(begun, key=lambda each: each[1].generation, default=None)
