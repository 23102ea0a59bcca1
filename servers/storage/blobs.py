"""The folder of blobs: what is there, putting, reading, removing.

    blobs/ab/<address>   a blob in a file of its own (blobfile.py); the file system says if it exists
    packs/<number>       small blobs together (pack.py); their places are in memory, 200 bytes a blob
    tmp/                 what is being written, in a folder a process (workplace.py)

What bears another name than these is not ours: it is left alone, and `strangers` lists it.

Methods marked *slow* do file work and touch nothing but their arguments: the server runs them in worker
threads. All others run on the event loop's thread, do not block for long, and alone touch the index; so
"look whether it is spared, then unlink" is one step that no put can come between.
"""

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from atoll.ipc.folders import sync_folder

from .blobfile import Footer, Writer, chunks, prove, read_footer
from .durable import install, install_new, make_folder
from .interface import BlobRef, Corrupt, DiskFull, NoSuchBlob
from .pack import Place, read_record, read_table, write_pack
from .workplace import Workplace

DESCRIPTORS = 128
"""Packs kept open at most: between two collections there may be more packs than a process may open files."""
_PACK_NAME = re.compile(r"[0-9]{8,}")
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


class Pack:
    """The addresses in one pack. `rotten`: its table had to be built from its records."""

    __slots__ = ("members", "rotten")

    def __init__(self, members: list[bytes], rotten: bool) -> None:
        self.members = members
        self.rotten = rotten


class Blobs:
    """Invariant (`broken`): each place in the index points into a pack that lists that address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packs: dict[int, Pack] = {}
        self.places: dict[bytes, Place] = {}
        self.damaged: set[bytes] = set()
        """Found damaged and not mended since; a put of the same content writes it anew."""
        self._next_pack = 0
        self._open: OrderedDict[int, int] = OrderedDict()
        """Descriptors of packs by number, the one used last at the end."""

    # opening ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make or read the folder. Raises OSError."""
        for each in ("blobs", "packs", "tmp"):
            make_folder(self.folder / each)
        for first in range(256):
            (self.folder / "blobs" / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_folder(self.folder / "blobs")
        self._workplace = Workplace(self.folder / "tmp")
        numbers = (path.name for path in (self.folder / "packs").iterdir())
        for number in sorted(int(name) for name in numbers if _PACK_NAME.fullmatch(name)):
            table = read_table(self._descriptor(number))
            self._admit(number, table.rows, table.rebuilt)

    def close(self) -> None:
        self._workplace.leave()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self.packs.clear()
        self.places.clear()

    def _admit(self, number: int, rows: list[tuple[bytes, int, int]], rotten: bool) -> None:
        self.packs[number] = Pack([row[0] for row in rows], rotten)
        for address, offset, length in rows:
            self.places[address] = Place(number, offset, length)
        self._next_pack = max(self._next_pack, number + 1)

    def _descriptor(self, number: int) -> int:
        """Of an open pack; good until the next call. Raises OSError."""
        found = self._open.get(number)
        if found is None:
            if len(self._open) == DESCRIPTORS:
                os.close(self._open.popitem(last=False)[1])
            found = os.open(self._pack_path(number), os.O_RDONLY | os.O_CLOEXEC)
            self._open[number] = found
        self._open.move_to_end(number)
        return found

    # names ------------------------------------------------------------------------------------------------

    def _pack_path(self, number: int) -> Path:
        return self.folder / "packs" / f"{number:08d}"

    def path(self, hash: bytes) -> Path:
        """Where a blob's own file is, if it has one."""
        name = hash.hex()
        return self.folder / "blobs" / name[:2] / name

    def temporary(self) -> Path:
        """A name for a file to be written, which no one else uses."""
        return self._workplace.temporary()

    # what is there ----------------------------------------------------------------------------------------

    def has(self, hash: bytes) -> bool:
        return hash in self.places or self.path(hash).exists()

    def sound(self, hash: bytes) -> bool:
        """It is there and not known to be damaged."""
        return hash not in self.damaged and self.has(hash)

    def proved(self, hash: bytes) -> bool:
        """It is packed, and was read again just now: a put of it has nothing to write."""
        try:
            return self.small(hash) is not None
        except Corrupt:
            return False

    def size(self, hash: bytes) -> int:
        """Raises NoSuchBlob, Corrupt."""
        place = self.places.get(hash)
        if place is not None:
            return place.length
        descriptor = self.open_file(hash)
        try:
            return read_footer(descriptor, hash).size
        finally:
            os.close(descriptor)

    def open_file(self, hash: bytes) -> int:
        """A descriptor of the blob's own file; it stays good when the blob is collected. Raises
        NoSuchBlob.
        """
        try:
            return os.open(self.path(hash), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoSuchBlob(hash=hash) from None

    def small(self, hash: bytes) -> bytes | None:
        """The content of a packed blob, None if it is not packed. Raises Corrupt, and notes it in
        `damaged`.
        """
        place = self.places.get(hash)
        if place is None:
            return None
        try:
            return read_record(self._descriptor(place.pack), hash, place)
        except (FileNotFoundError, Corrupt):
            self.damaged.add(hash)
            raise Corrupt(hash=hash, offset=0) from None

    def files(self) -> Iterator[bytes]:
        """The addresses that have a file of their own."""
        for path in self._each_file():
            if self._is_blob(path):
                yield bytes.fromhex(path.name)

    def _each_file(self) -> Iterator[Path]:
        for first in range(256):
            yield from list((self.folder / "blobs" / f"{first:02x}").iterdir())

    @staticmethod
    def _is_blob(path: Path) -> bool:
        return _BLOB_NAME.fullmatch(path.name) is not None and path.name.startswith(path.parent.name)

    def strangers(self) -> Iterator[str]:
        """Files that bear no name that this module gives, by their path in the folder."""
        for path in self._each_file():
            if not self._is_blob(path):
                yield str(path.relative_to(self.folder))
        for path in (self.folder / "packs").iterdir():
            if not _PACK_NAME.fullmatch(path.name):
                yield str(path.relative_to(self.folder))

    # putting ----------------------------------------------------------------------------------------------

    def writer(self) -> Writer:
        return Writer(self.temporary())

    @staticmethod
    def install(temporary: Path, final: Path) -> None:
        """Slow: give a sealed file its name."""
        install(temporary, final)

    def next_pack(self) -> int:
        self._next_pack += 1
        return self._next_pack - 1

    def write_pack(self, temporary: Path, number: int, held: list[tuple[bytes, bytes]]) -> "NewPack":
        """Slow: write and install a pack under the first free number from `number` on. Raises OSError, and
        then leaves nothing.
        """
        rows = write_pack(temporary, held)
        try:
            while True:
                try:
                    install_new(temporary, self._pack_path(number))
                    return NewPack(number, rows)
                except FileExistsError:
                    number += 1
        finally:
            temporary.unlink(missing_ok=True)

    def admit(self, new: "NewPack") -> None:
        """Take a written pack into the index; its copies of blobs win over older ones."""
        self._admit(new.number, new.rows, rotten=False)
        self.damaged.difference_update(address for address, _, _ in new.rows)

    def prove_table(self, number: int) -> None:
        """Note in the pack if its table has rotted: collection then writes it anew. Raises OSError."""
        with suppress(FileNotFoundError):  # somebody has removed it, which its blobs are found damaged by
            self.packs[number].rotten |= read_table(self._descriptor(number)).rebuilt

    # removing ---------------------------------------------------------------------------------------------

    def remove_file(self, hash: bytes) -> None:
        self.path(hash).unlink()
        self.damaged.discard(hash)

    def drop_pack(self, number: int) -> None:
        """Remove a pack; the index forgets what only it held."""
        pack = self.packs.pop(number)
        for address in pack.members:
            place = self.places.get(address)
            if place is not None and place.pack == number:
                del self.places[address]
                self.damaged.discard(address)
        if number in self._open:
            os.close(self._open.pop(number))
        self._pack_path(number).unlink(missing_ok=True)

    # proving ----------------------------------------------------------------------------------------------

    def broken(self) -> list[str]:
        """Sentences about the index that should never be true."""
        return [
            f"blob {address.hex()} is placed in pack {place.pack}, which does not list it"
            for address, place in self.places.items()
            if place.pack not in self.packs or address not in self.packs[place.pack].members
        ]


class NewPack(NamedTuple):
    """A pack on disk that the index does not know yet."""

    number: int
    rows: list[tuple[bytes, int, int]]


def read_slice(descriptor: int, footer: Footer, start: int, end: int) -> list[bytes]:
    """Slow: the proved chunks from `start` to `end` of an open blob file. Raises Corrupt."""
    return list(chunks(descriptor, footer, start, end))


def prove_file(path: Path, address: bytes) -> int:
    """Slow: read and prove a blob's file; returns its size. Raises Corrupt, NoSuchBlob (collected
    meanwhile).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchBlob(hash=address) from None
    try:
        return prove(descriptor, address)
    finally:
        os.close(descriptor)


def no_space(error: OSError) -> bool:
    """The disk, or its owner's quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def refused_for_space(error: OSError, size: int) -> DiskFull:
    """The caller's sentence for a full disk. Any other OSError is our own fault and raised again."""
    if no_space(error):
        return DiskFull(size=size)
    raise error


def refs(rows: list[tuple[bytes, int, int]]) -> list[BlobRef]:
    return [BlobRef(address, length) for address, _, length in rows]
