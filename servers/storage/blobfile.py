"""One blob in a file of its own: chunks, each followed by its checksum, then a footer.

    chunk 0 (65,536 bytes) | checksum 0 (16) | chunk 1 | ... | last chunk | checksum | footer (64)

Checksums lie between the chunks and not in a table, so that a writer and a reader of any size need memory
for one chunk only, and so that a range is read and proved without reading what stands before it. A
checksum is salted with the chunk's number: chunks that swapped places are found. The footer repeats the
address and the size: a file cut short, or one that lies under another's name, is found before a byte of
it is given out. The whole content is hashed again by `verify`.
"""

import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from .durable import write_all
from .interface import Corrupt, blob_hash

CHUNK = 64 * 1024
CHECK = 16
_STRIDE = CHUNK + CHECK
_MAGIC = b"ATOLBLB1"
_FOOTER = struct.Struct("<8sQ32s16s")

assert _FOOTER.size == 64


class Footer(NamedTuple):
    hash: bytes
    size: int


def _check(chunk: bytes | memoryview, index: int) -> bytes:
    return blake2b(chunk, digest_size=CHECK, salt=index.to_bytes(16, "little")).digest()


def _file_size(size: int) -> int:
    chunks = -(-size // CHUNK)
    return size + chunks * CHECK + _FOOTER.size


class Writer:
    """Streams one blob into a temporary file; memory: less than one chunk, whatever the blob's size.

    `write` any number of times, then `seal`, then the file may be installed; or `discard` at any point.
    """

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.size = 0
        self._hash = blob_hash()
        self._chunks = 0
        self._rest = bytearray()
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. Raises OSError (a full disk); the file is then good for `discard` only."""
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        if self._rest:
            missing = CHUNK - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) == CHUNK:
                self._emit(memoryview(bytes(self._rest)))
                self._rest.clear()
        while len(view) >= CHUNK:
            self._emit(view[:CHUNK])
            view = view[CHUNK:]
        self._rest += view

    def _emit(self, chunk: memoryview) -> None:
        write_all(self._descriptor, chunk)
        write_all(self._descriptor, _check(chunk, self._chunks))
        self._chunks += 1

    def seal(self) -> Footer:
        """Write the rest and the footer, fsync, close: from here on the temporary file is whole and
        durable.
        """
        if self._rest:
            self._emit(memoryview(bytes(self._rest)))
            self._rest.clear()
        address = self._hash.digest()
        body = _MAGIC + self.size.to_bytes(8, "little") + address
        write_all(self._descriptor, body + blake2b(body, digest_size=CHECK).digest())
        os.fsync(self._descriptor)
        self._close()
        return Footer(address, self.size)

    def discard(self) -> None:
        """Close and remove the temporary file, if it is still there."""
        self._close()
        self.temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_footer(descriptor: int, address: bytes) -> Footer:
    """The footer of an open blob file that should hold `address`. Raises Corrupt."""
    length = os.fstat(descriptor).st_size
    raw = os.pread(descriptor, _FOOTER.size, max(0, length - _FOOTER.size))
    if len(raw) != _FOOTER.size:
        raise Corrupt(hash=address, offset=0)
    magic, size, found, check = _FOOTER.unpack(raw)
    whole = blake2b(raw[:-CHECK], digest_size=CHECK).digest() == check
    if magic != _MAGIC or not whole or found != address or length != _file_size(size):
        raise Corrupt(hash=address, offset=min(size, length) if whole else max(0, length - _FOOTER.size))
    return Footer(found, size)


def chunks(descriptor: int, footer: Footer, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end` of an open blob file, a chunk or less at a time, each proved before
    it is given.

    Raises Corrupt, naming the offset of the chunk that is not what was written.
    """
    index = start // CHUNK
    while index * CHUNK < end:
        low = index * CHUNK
        length = min(CHUNK, footer.size - low)
        record = os.pread(descriptor, length + CHECK, index * _STRIDE)
        chunk = record[:length]
        if len(record) != length + CHECK or _check(chunk, index) != record[length:]:
            raise Corrupt(hash=footer.hash, offset=low)
        yield chunk if start <= low and end >= low + length else chunk[max(0, start - low) : end - low]
        index += 1


def prove(descriptor: int, address: bytes) -> int:
    """Read the whole file and hash its content again; returns its size. Raises Corrupt."""
    footer = read_footer(descriptor, address)
    content = blob_hash()
    for chunk in chunks(descriptor, footer, 0, footer.size):
        content.update(chunk)
    if content.digest() != address:
        raise Corrupt(hash=address, offset=0)
    return footer.size
