"""The boot journal: what the kernel must know while the store does not serve.

`state` is itself a server, so the kernel boots, restarts and swaps it from the image and this file alone. It holds the
node's identity, the boot epoch, and the changes that wait to become rows once `state` serves.

The file is a header and then records, each framed as length, checksum, body; a record is appended with one
write and is there once `fdatasync` has returned. The end of the file may be torn by a crash: opening wipes what
lies behind the last whole record, which loses nothing that was acknowledged. A bad record with good ones *behind*
it is no torn end but damage, and is refused: going on would silently forget an epoch. `compact` writes the
present state as a new file and renames it over the old one. Behind the last record lie zeros, space that is the
journal's already: on a full disk the kernel must still be able to start `state` again.

One process has the file open, the kernel, under the lock on the node's folder.
"""

import errno
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from .changes import Changes

MAGIC = b"atoll journal 1\n"
_FRAME = 8
"""Bytes before a body: its length and its CRC-32, both little-endian."""
RESERVE = 256 << 10
"""Bytes kept behind the last record."""
RECORD_LIMIT = 16 << 20
"""Bytes of one body at most; a length beyond it is damage."""


class JournalDamaged(Exception):
    """The boot journal cannot be believed. The message says where, and what to do."""


class Identity(Struct, frozen=True, tag="identity", array_like=True):
    """Who this node is; the first record of every journal."""

    node: str
    made: int
    """Nanoseconds since the epoch."""


class Booted(Struct, frozen=True, tag="booted", array_like=True):
    """A boot began. Epochs rise by one; the store refuses commits of an older one."""

    epoch: int
    time: int


class Retired(Struct, frozen=True, tag="state", array_like=True):
    """What was written until 0.1 of how the store's server is run: the image says it."""


class Waiting(Struct, frozen=True, tag="waiting", array_like=True):
    """Changes that are decided and have become no rows yet. Their id makes a second commit harmless."""

    changes: Changes


class Settled(Struct, frozen=True, tag="settled", array_like=True):
    """The changes with this id are rows."""

    id: bytes


Record = Identity | Booted | Retired | Waiting | Settled

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Record)


def frame(record: Record) -> bytes:
    """A record as it lies in the file."""
    body = _encode(record)
    if len(body) > RECORD_LIMIT:
        raise ValueError(f"a journal record of {len(body)} bytes; {RECORD_LIMIT} is the limit")
    return len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


class Journal:
    """An open journal and what it says. Made by `open`; every change is durable when its method returns."""

    def __init__(self, path: Path, descriptor: int, identity: Identity, end: int) -> None:
        self.path = path
        self.end = end
        """Where the last record ends, and the next one goes."""
        self.identity = identity
        self.epoch = 0
        """The latest boot's."""
        self.waiting: dict[bytes, Changes] = {}
        """By id, oldest first."""
        self.cut = 0
        """Bytes of a torn end that opening wiped."""
        self.records = 0
        """Records in the file; `compact` when they are many more than what stands."""
        self._descriptor = descriptor
        self._moved = False
        """It has taken the place of another file, and a power cut could still put that one back."""

    # writing ------------------------------------------------------------------------------------------------

    def boot(self, time: int) -> int:
        """Begins a boot; returns its epoch, which no earlier boot had."""
        self._append(Booted(self.epoch + 1, time))
        return self.epoch

    def wait(self, changes: Changes) -> None:
        """Keeps changes until `settle`; a second call with the same id changes nothing."""
        if changes.id not in self.waiting:
            self._append(Waiting(changes))

    def settle(self, id: bytes) -> None:
        """The store has committed the changes with this id."""
        if id in self.waiting:
            self._append(Settled(id))

    def compact(self) -> None:
        """Rewrites the file as the fewest records that say the same, atomically."""
        records = _summary(self)
        with _opened(self.path.parent) as folder:
            descriptor, end = _write_new(self.path, records)
            os.close(self._descriptor)  # it has no name any more: what is written there is nowhere
            self._descriptor, self.end, self._moved = descriptor, end, True
            self.records = len(records)
            self._stay(folder)

    def _stay(self, folder: int) -> None:
        os.fsync(folder)
        self._moved = False

    def close(self) -> None:
        os.close(self._descriptor)

    def _append(self, record: Record) -> None:
        data = frame(record)
        if self._moved:
            with _opened(self.path.parent) as folder:
                self._stay(folder)
        try:
            _write_all(self._descriptor, data, self.end)
            os.fdatasync(self._descriptor)
        except OSError:
            # What lies behind `end` was not acknowledged and must not stand between two whole records.
            os.ftruncate(self._descriptor, self.end)
            raise
        self.end += len(data)
        self._take(record)
        if os.fstat(self._descriptor).st_size < self.end + RESERVE // 2:
            with suppress(OSError):  # a full disk: it is what the rest of the reserve is for
                os.posix_fallocate(self._descriptor, self.end, RESERVE)

    def _take(self, record: Record) -> None:
        self.records += 1
        match record:
            case Identity():
                self.identity = record
            case Booted():
                self.epoch = record.epoch
            case Retired():
                pass
            case Waiting():
                self.waiting[record.changes.id] = record.changes
            case Settled():
                self.waiting.pop(record.id, None)


def create(path: Path, node: str, made: int, epoch: int = 0) -> Journal:
    """A new node's journal; its boots are counted on from `epoch`. Raises `FileExistsError` if there is one."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, "a node has its journal here", str(path))
    identity = Identity(node, made)
    records: list[Record] = [identity, Booted(epoch, made)] if epoch else [identity]
    with _opened(path.parent) as folder:
        descriptor, end = _write_new(path, records)
        journal = Journal(path, descriptor, identity, end)
        try:
            journal._stay(folder)
        except OSError:
            journal.close()
            raise
    for record in records:
        journal._take(record)
    return journal


def open_(path: Path) -> Journal:
    """Opens a node's journal and cuts a torn end. Raises `FileNotFoundError`, or `JournalDamaged`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        data = _read_all(descriptor)
        records, end = parse(data, str(path))
        first = records[0] if records else None
        if not isinstance(first, Identity):
            raise JournalDamaged(
                f"{path}: expected the node's identity first, found {_name(first)}: {_REMEDY}"
            )
        journal = Journal(path, descriptor, first, end)
        for record in records:
            journal._take(record)
        journal.cut = len(data[end:].rstrip(b"\0"))
        if journal.cut:
            _write_all(descriptor, bytes(journal.cut), end)  # not cut off: the room behind it is kept
            os.fdatasync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return journal


_REMEDY = "restore it from a backup of the node's folder"


def parse(data: bytes, name: str) -> tuple[list[Record], int]:
    """The whole records of a journal's bytes, and where they end; raises `JournalDamaged`."""
    if not data.startswith(MAGIC):
        found = data[: len(MAGIC)]
        raise JournalDamaged(f"{name}: expected it to begin with {MAGIC!r}, found {found!r}: {_REMEDY}")
    records: list[Record] = []
    at, written = len(MAGIC), len(data.rstrip(b"\0"))
    while at < written:
        body = _body(data, at)
        if body is None:
            _refuse_damage(data, at, name)
            break
        try:
            records.append(_decoder.decode(body))
        except msgspec.MsgspecError as error:
            # Its checksum holds, so it is as it was written: by a release that knows more than this one.
            raise JournalDamaged(f"{name}: record at byte {at} is none of this release ({error})") from error
        at += _FRAME + len(body)
    return records, at


def _body(data: bytes, at: int) -> bytes | None:
    """The body of the record at `at`, or None if no whole one is there."""
    length = int.from_bytes(data[at : at + 4], "little")
    body = data[at + _FRAME : at + _FRAME + length]
    whole = at + _FRAME + length <= len(data) and 0 < length <= RECORD_LIMIT
    return body if whole and zlib.crc32(body) == int.from_bytes(data[at + 4 : at + 8], "little") else None


def _refuse_damage(data: bytes, at: int, name: str) -> None:
    """A torn end has nothing whole behind it: only the last record's bytes were in flight. Damage has."""
    for later in range(at + 1, len(data) - _FRAME):
        body = _body(data, later)
        if body is None:
            continue
        try:
            _decoder.decode(body)
        except msgspec.MsgspecError:
            continue
        raise JournalDamaged(
            f"{name}: expected a record at byte {at}, found damage before the record at {later}: {_REMEDY}"
        )


def _summary(journal: Journal) -> list[Record]:
    records: list[Record] = [journal.identity]
    if journal.epoch:
        records.append(Booted(journal.epoch, 0))
    return [*records, *(Waiting(changes) for changes in journal.waiting.values())]


def _write_new(path: Path, records: list[Record]) -> tuple[int, int]:
    """A whole journal under its name or, after a crash or where that fails, the one that was there; returns its descriptor,
    and where its records end. Durable once the folder is synced."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = MAGIC + b"".join(frame(record) for record in records)
        os.posix_fallocate(descriptor, 0, len(data) + RESERVE)
        _write_all(descriptor, data, 0)
        os.fsync(descriptor)
        os.rename(fresh, path)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            fresh.unlink()
        raise
    return descriptor, len(data)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, 1 << 20):
        chunks.append(chunk)
    return b"".join(chunks)


def _name(record: object) -> str:
    return "nothing" if record is None else type(record).__name__
