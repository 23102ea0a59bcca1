"""The write-ahead log's files: what was committed since the database's own file was last on disk as a whole.

There are three *segments*, used in turn, of which two are needed at most. A segment's *base* is a transaction of the
database; its records are the batches of the transactions after it, without a gap. Whoever has the file as it was at the base
and the records has all that was acknowledged (`checkpoint.py` sees to the first). A segment, all numbers big end first:

    0       generation (8), base (8), whether it is settled (4), size of a page (4), checksum of these and the two pages (4)
    512     generation (8), checksum (4), once it is settled that was not: the database's file is on disk up to the base
    4096    the first two pages of the file as they were at the base: all that is written there in place
    then    records: length (4), checksum of all that follows (4), generation (8), transaction (8), the batch

A record counts if it bears its segment's generation and the transaction after the one before it. So nothing has to be
erased when a segment is begun again, and what was cut short by a power failure is the end.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from .engine import Batch, Broken, Row, Table

FILES: Final = ("log.0", "log.1", "log.2")
SIZE: Final = 1 << 20
"""Bytes of a segment that are preallocated. A larger batch makes its segment grow."""
_SETTLED: Final = 512
_PAGES: Final = 4096

_head = struct.Struct(">QQIII")
_settled = struct.Struct(">QI")
_record = struct.Struct(">IIQQ")
_CHECKED: Final = 8
"""Where in a record begins what its checksum covers."""
_mark = struct.Struct(">QQ")
"""What a record has there first: its generation and its transaction."""


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

    @property
    def start(self) -> int:
        """Where its records begin."""
        return _PAGES + len(self.pages)


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
        """None: it was never begun, or a power failure cut its beginning short."""
        raw = os.pread(self.descriptor, _PAGES, 0)
        if len(raw) < _PAGES:
            return None
        generation, base, settled, page, checksum = _head.unpack_from(raw)
        pages = os.pread(self.descriptor, 2 * page, _PAGES) if 512 <= page <= 1 << 16 else b""
        if not pages or zlib.crc32(pages, zlib.crc32(raw[: _head.size - 4])) != checksum:
            return None
        since = _settled.unpack_from(raw, _SETTLED) == (generation, zlib.crc32(raw[:8]))
        return Head(generation, base, pages, bool(settled) or since)

    def begin(self, head: Head) -> int:
        """Makes it a new segment without records; gives where they begin. Not durable before `sync`."""
        self.reserve(0, SIZE)
        fixed = _head.pack(head.generation, head.base, head.settled, len(head.pages) // 2, 0)[:-4]
        checksum = zlib.crc32(head.pages, zlib.crc32(fixed))
        os.pwrite(self.descriptor, head.pages, _PAGES)
        os.pwrite(self.descriptor, fixed + checksum.to_bytes(4, "big"), 0)
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

    def append(self, offset: int, generation: int, transaction: int, body: bytes) -> int:
        """Writes a record; gives where the next one goes. Not durable before `sync`. Raises OSError where the disk has
        no room."""
        head = _record.pack(len(body), 0, generation, transaction)
        checksum = zlib.crc32(body, zlib.crc32(head[_CHECKED:]))
        head = _record.pack(len(body), checksum, generation, transaction)
        size = len(head) + len(body)
        self.reserve(offset, size)
        if os.pwritev(self.descriptor, [head, body], offset) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return offset + size

    def erase(self, offset: int) -> None:
        """There is no record at an offset. Not durable before `sync`."""
        os.pwrite(self.descriptor, bytes(_record.size), offset)

    def cut(self, offset: int) -> None:
        """Takes the record at an offset back, and is durable when it returns."""
        self.erase(offset)
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
            found = self._record_at(offset)
            if found is None or found[:2] != (head.generation, transaction + 1):
                return
            _, transaction, body = found
            yield transaction, body
            offset += _record.size + len(body)

    def goes_on_after(self, head: Head, last: int) -> bool:
        """Whether a record lies behind the end of the records, at `last`: then one in between is damaged, for each was begun
        when the one before it was on the disk."""
        mark, start, rest = _mark.pack(head.generation, last + 2), head.start, b""
        while piece := os.pread(self.descriptor, SIZE, start + len(rest)):
            rest += piece
        at = rest.find(mark)
        while at >= 0:
            if at >= _CHECKED and self._record_at(start + at - _CHECKED) is not None:
                return True
            at = rest.find(mark, at + 1)
        return False

    def headless(self, page: int) -> int:
        """The generation of two records that follow each other where the first ones are; 0: there are none such. `page`:
        bytes of a page of the database."""
        offset = _PAGES + 2 * page
        first = self._record_at(offset)
        second = None if first is None else self._record_at(offset + _record.size + len(first[2]))
        if first is None or second is None or second[:2] != (first[0], first[1] + 1):
            return 0
        return first[0]

    def _record_at(self, offset: int) -> tuple[int, int, bytes] | None:
        """Generation, transaction and batch of a record that is whole."""
        raw = os.pread(self.descriptor, _record.size, offset)
        if len(raw) < _record.size:
            return None
        length, checksum, generation, number = _record.unpack(raw)
        if length > self._size:
            return None
        body = os.pread(self.descriptor, length, offset + _record.size)
        if len(body) < length or zlib.crc32(body, zlib.crc32(raw[_CHECKED:])) != checksum:
            return None
        return generation, number, body


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


def sync_folder(folder: Path) -> None:
    """Has the names of what lies in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(segments: list[Segment]) -> tuple[Segment, Head] | None:
    """The segment that was begun last, if there is one."""
    begun = [(segment, head) for segment in segments if (head := segment.head()) is not None]
    return max(begun, key=lambda each: each[1].generation, default=None)
