"""Many small blobs in one file, made durable by one fsync.

    header (32) | table: address 32, offset 8, length 4, a row each | records: address 32, length 4, content

The table makes opening cheap (44 bytes a blob); each record repeats its address, so that a table that
rotted is built again from the records, each of which proves itself. A pack is written once and never
changed: collection writes a new pack with what is still wanted and then removes the old one.
"""

import os
import re
import struct
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from .durable import write_all
from .interface import Corrupt, blob_hash

LARGEST = 64 * 1024
"""Bytes of the largest blob that goes into a pack; a reader proves a packed blob as a whole."""

_MAGIC = b"ATOLPAK1"
_HEADER = struct.Struct("<8sII16s")
_ROW = struct.Struct("<32sQI")
_RECORD = struct.Struct("<32sI")
_ZEROS = bytes(32)
_NOT_ZERO = re.compile(rb"[^\0]")

assert _HEADER.size == 32


class Place(NamedTuple):
    """Where a packed blob's content begins, and how long it is."""

    pack: int
    offset: int
    length: int


def write_pack(temporary: Path, blobs: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, int, int]]:
    """Write (address, content) pairs to `temporary` and fsync it; returns (address, offset, length) of each.

    Raises OSError; the temporary file is then removed.
    """
    held = list(blobs)
    offset = _HEADER.size + _ROW.size * len(held)
    rows: list[tuple[bytes, int, int]] = []
    parts: list[bytes] = []
    for address, content in held:
        rows.append((address, offset + _RECORD.size, len(content)))
        parts += (_RECORD.pack(address, len(content)), content)
        offset += _RECORD.size + len(content)
    table = b"".join(_ROW.pack(*row) for row in rows)
    header = _HEADER.pack(_MAGIC, len(rows), 0, blake2b(table, digest_size=16).digest())
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, b"".join((header, table, *parts)))
        os.fsync(descriptor)
    except OSError:
        temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    return rows


class Table(NamedTuple):
    rows: list[tuple[bytes, int, int]]
    rebuilt: bool
    """The table had rotted and was built from the records: the pack should be written again."""


def read_table(descriptor: int) -> Table:
    """What an open pack holds, from its table, or record by record where the table is damaged."""
    raw = os.pread(descriptor, _HEADER.size, 0)
    if len(raw) == _HEADER.size:
        magic, count, _, check = _HEADER.unpack(raw)
        size = os.fstat(descriptor).st_size
        if magic == _MAGIC and _HEADER.size + count * _ROW.size <= size:
            table = os.pread(descriptor, count * _ROW.size, _HEADER.size)
            if len(table) == count * _ROW.size and blake2b(table, digest_size=16).digest() == check:
                return Table(list(_ROW.iter_unpack(table)), rebuilt=False)
    return Table(_scan(descriptor), rebuilt=True)


def _scan(descriptor: int) -> list[tuple[bytes, int, int]]:
    """Find the records without the table: a record is wherever a header stands whose content has its
    address. Zeros, which are what a disk often gives for what it lost, are passed over at once.
    """
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0)
    rows: list[tuple[bytes, int, int]] = []
    at = _HEADER.size
    while at + _RECORD.size <= size:
        address, length = _RECORD.unpack_from(whole, at)
        begin = at + _RECORD.size
        if (
            length <= min(LARGEST, size - begin)
            and blob_hash(whole[begin : begin + length]).digest() == address
        ):
            rows.append((address, begin, length))
            at = begin + length
        elif address == _ZEROS:
            other = _NOT_ZERO.search(whole, at + len(_ZEROS))
            if other is None:
                break
            at = other.start() - len(_ZEROS) + 1  # no address is all zeros, so no record begins before
        else:
            at += 1
    return rows


def read_record(descriptor: int, address: bytes, place: Place) -> bytes:
    """The content of one packed blob, proved. Raises Corrupt."""
    content = os.pread(descriptor, place.length, place.offset)
    if len(content) != place.length or blob_hash(content).digest() != address:
        raise Corrupt(hash=address, offset=0)
    return content
