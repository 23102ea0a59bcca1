"""The folder of blobs: what is there, putting, reading, removing.

    blobs/ab/<address>   a blob in a file of its own (blobfile.py); the file system says if it exists
    packs/<number>       small blobs together (pack.py); their places are in memory, 200 bytes a blob
    tmp/                 what is being written, in a folder a process

Methods marked *slow* do file work and touch nothing but their arguments: the server runs them in worker
threads. All others run on the event loop's thread, do not block for long, and alone touch the index; so
"look whether it is spared, then unlink" is one step that no put can come between.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .blobfile import Footer, Writer, chunks, prove, read_footer
from .durable import install, install_new, make_folder, sync_folder
from .interface import BlobRef, DiskFull, NoSuchBlob
from .pack import Place, Table, read_record, read_table, write_pack


class Pack:
    """One pack: its open descriptor and the addresses in it. `rotten`: its table had to be built from its
    records.
    """

    __slots__ = ("descriptor", "members", "rotten")

    def __init__(self, descriptor: int, members: list[bytes], rotten: bool) -> None:
        self.descriptor = descriptor
        self.members = members
        self.rotten = rotten


class Blobs:
    """Invariant (`broken`): each place in the index points into a pack that is open and lists that
    address.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packs: dict[int, Pack] = {}
        self.places: dict[bytes, Place] = {}
        self.damaged: set[bytes] = set()
        """Found damaged and not mended since; a put of the same content writes it anew."""
        self._temporaries = 0
        self._next_pack = 0

    # opening ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make or read the folder. Raises OSError."""
        for each in ("blobs", "packs", "tmp"):
            make_folder(self.folder / each)
        for first in range(256):
            (self.folder / "blobs" / f"{first:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_folder(self.folder / "blobs")
        self._take_workplace()
        for path in sorted((self.folder / "packs").iterdir()):
            self._load_pack(int(path.name))

    def _take_workplace(self) -> None:
        """A folder of our own in `tmp/`, locked while we live; those that nobody holds any more are removed.

        Two versions of the server may be up at once during a swap; neither removes what the other writes.
        """
        for left in (self.folder / "tmp").iterdir():
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(left)
            finally:
                os.close(descriptor)
        self._workplace = Path(tempfile.mkdtemp(dir=self.folder / "tmp"))
        self._lock = os.open(self._workplace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self._workplace)
        os.close(self._lock)
        for pack in self.packs.values():
            os.close(pack.descriptor)
        self.packs.clear()
        self.places.clear()

    def _load_pack(self, number: int) -> None:
        descriptor = os.open(self._pack_path(number), os.O_RDONLY | os.O_CLOEXEC)
        table: Table = read_table(descriptor)
        self._admit(number, descriptor, table.rows, table.rebuilt)

    def _admit(self, number: int, descriptor: int, rows: list[tuple[bytes, int, int]], rotten: bool) -> None:
        self.packs[number] = Pack(descriptor, [row[0] for row in rows], rotten)
        for address, offset, length in rows:
            self.places[address] = Place(number, offset, length)
        self._next_pack = max(self._next_pack, number + 1)

    # names ------------------------------------------------------------------------------------------------

    def _pack_path(self, number: int) -> Path:
        return self.folder / "packs" / f"{number:08d}"

    def path(self, hash: bytes) -> Path:
        """Where a blob's own file is, if it has one."""
        name = hash.hex()
        return self.folder / "blobs" / name[:2] / name

    def temporary(self) -> Path:
        """A name for a file to be written, which no one else uses."""
        self._temporaries += 1
        return self._workplace / str(self._temporaries)

    # what is there ----------------------------------------------------------------------------------------

    def has(self, hash: bytes) -> bool:
        return hash in self.places or self.path(hash).exists()

    def sound(self, hash: bytes) -> bool:
        """It is there and not known to be damaged: a put of it has nothing to write."""
        return hash not in self.damaged and self.has(hash)

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
        """The content of a packed blob, None if it is not packed. Raises Corrupt."""
        place = self.places.get(hash)
        if place is None:
            return None
        return read_record(self.packs[place.pack].descriptor, hash, place)

    def files(self) -> Iterator[bytes]:
        """The addresses that have a file of their own."""
        for first in range(256):
            with os.scandir(self.folder / "blobs" / f"{first:02x}") as entries:
                names = [entry.name for entry in entries]
            yield from (bytes.fromhex(name) for name in names)

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
        """Slow: write and install a pack under the first free number from `number` on. Raises OSError."""
        rows = write_pack(temporary, held)
        while True:
            try:
                install_new(temporary, self._pack_path(number))
                break
            except FileExistsError:
                number += 1
        return NewPack(number, os.open(self._pack_path(number), os.O_RDONLY | os.O_CLOEXEC), rows)

    def admit(self, new: "NewPack") -> None:
        """Take a written pack into the index; its copies of blobs win over older ones."""
        self._admit(new.number, new.descriptor, new.rows, rotten=False)
        self.damaged.difference_update(address for address, _, _ in new.rows)

    def discard(self, new: "NewPack") -> None:
        """Remove a written pack that the index has not taken in."""
        os.close(new.descriptor)
        self._pack_path(new.number).unlink()

    # removing ---------------------------------------------------------------------------------------------

    def remove_file(self, hash: bytes) -> None:
        self.path(hash).unlink()
        self.damaged.discard(hash)

    def drop_pack(self, number: int) -> None:
        """Remove a pack; the index forgets what only it held. Readers that hold its descriptor's content
        go on.
        """
        pack = self.packs.pop(number)
        for address in pack.members:
            place = self.places.get(address)
            if place is not None and place.pack == number:
                del self.places[address]
                self.damaged.discard(address)
        os.close(pack.descriptor)
        self._pack_path(number).unlink()

    # proving ----------------------------------------------------------------------------------------------

    def broken(self) -> list[str]:
        """Sentences about the index that should never be true."""
        return [
            f"blob {address.hex()} is placed in pack {place.pack}, which does not list it"
            for address, place in self.places.items()
            if place.pack not in self.packs or address not in self.packs[place.pack].members
        ]


class NewPack:
    """A pack on disk that the index does not know yet."""

    __slots__ = ("descriptor", "number", "rows")

    def __init__(self, number: int, descriptor: int, rows: list[tuple[bytes, int, int]]) -> None:
        self.number = number
        self.descriptor = descriptor
        self.rows = rows


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


def refused_for_space(error: OSError, size: int) -> DiskFull:
    """The caller's sentence for a full disk. Any other OSError is our own fault and raised again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(size=size)
    raise error


def refs(rows: list[tuple[bytes, int, int]]) -> list[BlobRef]:
    return [BlobRef(address, length) for address, _, length in rows]
