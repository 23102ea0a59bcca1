"""A segment: one file that holds what was kept of some revisions when it was written, and never changes.

    magic (8) | frames | trailer | footer (40): offset of the trailer (8), magic (8), its length (8), its check (16)

A frame is a header, `_HEADER`, and zlib-compressed records (`export.Record`) of a MiB or so; the check at the header's end
covers the header before it and the payload. Frames come newest first, as they were read; the records of one frame
rise. Frames of section `MAIN` hold all keyspaces of the segment's own revisions; those of `AFRESH` what some keyspaces
had at earlier revisions (`chain.py`).

The trailer says what the segment is and where its frames lie. Whoever reads a segment begins there, so that a file that
was cut off is told at once; each frame proves itself before its records are believed.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from .. import layout
from ..export import Record, decode, encode
from .chain import Standing
from .faults import Damaged

MAIN: Final = 0
AFRESH: Final = 1
FRAME: Final = 1 << 20
"""Bytes of encoded records from which on a frame is written."""
_MAGIC: Final = b"ATOLSEG1"
_HEADER = struct.Struct("<IIIIQQQQ16s")
"""Section, revisions, compressed and plain length, lowest and highest revision, their times in ns, check."""
_FOOTER = struct.Struct("<Q8sQ16s")
_CHECK: Final = 16
_LARGEST: Final = 1 << 31


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """Where a frame lies, and what is in it."""

    offset: int
    section: int
    count: int
    lowest: int
    highest: int
    first: int
    last: int


class Trailer(msgspec.Struct, array_like=True, frozen=True):
    after: int
    upto: int
    standing: list[Standing]
    """How each keyspace stands once this segment is added to those before it."""
    frames: list[Frame]


class Sealed(NamedTuple):
    """A segment that is whole on disk."""

    size: int
    hash: bytes
    revisions: int
    began: int
    """When the first of them was committed, in ns; 0: there is none."""


_encode = msgspec.msgpack.Encoder().encode
_decode_trailer = msgspec.msgpack.Decoder(Trailer).decode


def _check(data: bytes) -> bytes:
    return blake2b(data, digest_size=_CHECK).digest()


class Writer:
    """Streams a segment into a new file; in memory is one frame. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")  # noqa: SIM115 (closed by `seal` or `discard`)
        os.fchmod(self._file.fileno(), 0o600)
        self._hash = blake2b(digest_size=32)
        self._at = 0
        self._frames: list[Frame] = []
        self._section = MAIN
        self._held: list[Record] = []
        self._size = 0
        self._put(_MAGIC)

    def add(self, section: int, records: list[Record]) -> None:
        """Records below all that were added to the section, or more of the lowest revision."""
        if section != self._section:
            self._flush()
            self._section = section
        self._held += records
        self._size += sum(
            len(each.event) + sum(len(value or b"") + 4 for _, value in each.rows) for each in records
        )
        if self._size >= FRAME:
            self._flush()

    def seal(self, after: int, upto: int, standing: list[Standing]) -> Sealed:
        """Writes the rest and makes the file durable under the name that it has."""
        self._flush()
        trailer = _encode(Trailer(after, upto, standing, self._frames))
        at = self._at
        self._put(trailer)
        self._put(_FOOTER.pack(at, _MAGIC, len(trailer), _check(trailer)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        own = [frame for frame in self._frames if frame.section == MAIN]
        revisions, began = sum(frame.count for frame in own), min((frame.first for frame in own), default=0)
        return Sealed(self._at, self._hash.digest(), revisions, began)

    def discard(self) -> None:
        with suppress(OSError):  # what it still holds may find no room
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._held:
            return
        records = sorted(self._held, key=lambda record: record.revision)
        plain = encode(records)
        data = zlib.compress(plain, 1)
        lowest, highest = records[0], records[-1]
        count = len({record.revision for record in records})
        first, last = layout.time_of(lowest.event), layout.time_of(highest.event)
        head = (self._section, count, len(data), len(plain), lowest.revision, highest.revision, first, last)
        bare = _HEADER.pack(*head, b"")[:-_CHECK]
        self._frames.append(
            Frame(self._at, self._section, count, lowest.revision, highest.revision, first, last)
        )
        self._put(bare + _check(bare + data))
        self._put(data)
        self._held = []
        self._size = 0

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._at += len(data)


class Segment:
    """A segment's file, read. Raises `Damaged` wherever it is not as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Damaged(
                f"{path} is missing: the backup cannot be read beyond the segment before it"
            ) from None
        try:
            self.size = os.fstat(self._descriptor).st_size
            self._trailer_at, self.trailer = self._read_trailer()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rising(self, section: int, upto: int) -> Iterator[Record]:
        """The records of a section up to a revision, in order; a revision's parts follow one another."""
        for frame in reversed(self.trailer.frames):
            if frame.section == section and frame.lowest <= upto:
                for record in self._records(frame):
                    if record.revision > upto:
                        break
                    yield record

    def last_at(self, time: int) -> int:
        """The last revision of the segment's own at or before a time in ns; 0: none."""
        for frame in self.trailer.frames:
            if frame.section == MAIN and frame.first <= time:
                return max(
                    record.revision for record in self._records(frame) if layout.time_of(record.event) <= time
                )
        return 0

    def last_upto(self, revision: int) -> int:
        """The last revision of the segment's own at or before one; 0: none."""
        for frame in self.trailer.frames:
            if frame.section == MAIN and frame.lowest <= revision:
                return max(each.revision for each in self._records(frame) if each.revision <= revision)
        return 0

    def prove(self, size: int, hash: bytes) -> None:
        """Reads the whole file, and finds where it is not what was written."""
        found = blake2b(digest_size=32)
        for offset in range(0, self.size, FRAME):
            found.update(os.pread(self._descriptor, FRAME, offset))
        if (self.size, found.digest()) == (size, hash):
            return
        if self.size != size:
            raise self._damage(
                min(self.size, size), f"the file has {self.size} bytes, and was written with {size}"
            )
        if os.pread(self._descriptor, len(_MAGIC), 0) != _MAGIC:
            raise self._damage(0, "the file does not begin as a segment does")
        for frame in self.trailer.frames:
            self._records(frame)
        raise self._damage(0, "it is another file than the manifest names")

    def _records(self, frame: Frame) -> list[Record]:
        raw = os.pread(self._descriptor, _HEADER.size, frame.offset)
        if len(raw) != _HEADER.size:
            raise self._damage(frame.offset, "the file ends within a frame")
        section, count, length, plain, lowest, highest, first, last, check = _HEADER.unpack(raw)
        told = Frame(frame.offset, section, count, lowest, highest, first, last)
        data = os.pread(self._descriptor, length, frame.offset + _HEADER.size)
        if told != frame or plain > _LARGEST or _check(raw[:-_CHECK] + data) != check:
            raise self._damage(
                frame.offset,
                f"the frame of revisions {frame.lowest} to {frame.highest} is not as it was written",
            )
        return decode(zlib.decompress(data, bufsize=plain))

    def _read_trailer(self) -> tuple[int, Trailer]:
        at = self.size - _FOOTER.size
        raw = os.pread(self._descriptor, _FOOTER.size, max(0, at))
        if at < len(_MAGIC) or len(raw) != _FOOTER.size:
            raise self._damage(0, "the file is too short for a segment")
        offset, magic, length, check = _FOOTER.unpack(raw)
        if magic != _MAGIC or offset + length != at:
            raise self._damage(at, "the file does not end as a segment does: it was cut off or changed")
        trailer = os.pread(self._descriptor, length, offset)
        if _check(trailer) != check:
            raise self._damage(offset, "the list of its frames is not as it was written")
        return offset, _decode_trailer(trailer)

    def _damage(self, offset: int, what: str) -> Damaged:
        return Damaged(f"{self.path}: at byte {offset}: {what}")
