"""How a commit becomes durable with one write to the disk: the log before the database, and checkpoints behind.

LMDB by itself writes every page that a commit touched, waits for the disk, writes the page that names them, and waits
again. Here a commit is appended to the log (`write_ahead.py`) and waits for that alone; then LMDB commits without waiting,
so that readers see it, and the pages are written behind.

What lies in LMDB's file between two checkpoints is of no use after a power failure: pages reach the disk in any order. So
the state at the *base* of a segment is kept until the next one is settled. A snapshot of it stays open, the *pin*: LMDB
reuses no page that an open snapshot may reach, so all it overwrites meanwhile are its first two pages, and those lie in
the segment. A *checkpoint* begins the next segment at the newest transaction, and has the file written to the disk by a
thread; when that is done the segment is settled, which the next record makes durable, and the older pin goes.

`opening` brings back what the base was and hands out the batches since. Only where nobody else has the database open: who
does lives in the same page cache as we, which has then lost nothing. A writer that dies in between leaves the base, and a
reader may open that before the next writer comes: it is brought forward all the same (`Log.left_over`).

Every transaction of the database is in the log before the database has it. So a database that is ahead of its log, or
records whose beginning or middle is not whole, are damage, and the store is not opened: without what is missing it might
look whole.

Two processes may have the store open for writing (a swap). Each looks, holding LMDB's writer lock, whether the log is still
as it left it; if not, it has the file written to the disk and begins a segment of its own.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Final

import lmdb

from .engine import Batch, Broken
from .write_ahead import FILES, Head, Segment, decode, encode, new_salt, newest, segments_in

DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
FAILED_FILE: Final = "failed"
"""Left by a writer whose write to the disk failed, or who died while he put the file back: until it was put back, nobody
trusts the page cache."""
OFTEN: Final = 1 << 20
SELDOM: Final = 16 << 20
"""Bounds of how many bytes of pages are written, roughly, before a checkpoint is due."""
BEHIND: Final = 4
"""So many times that, and the writer waits for a checkpoint that is under way."""
_TREES: Final = 16
"""Pages that a commit touches besides those of its rows: branches, the free list, the pages that are appended to."""

_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_meta_mark = struct.Struct("=II")
_meta_transaction = struct.Struct("=Q")
_META_MARK: Final = 16
_META_TRANSACTION: Final = 144
"""Where LMDB 0.9 keeps, in each of the first two pages, its mark and the transaction that the page is of."""
_flock = struct.Struct("hhqqi")
_here: Final[set[tuple[int, int, int]]] = set()
"""Process, device and inode of the lock file of each database that is open in this process: LMDB's locks on it are the
process's, and would go with any other descriptor of it that is closed."""


class Log:
    """Of one open LMDB environment, for its writer."""

    def __init__(self, folder: Path, environment: lmdb.Environment, spare: int) -> None:
        """`spare`: bytes of the file that may be pinned without harm, roughly. Raises OSError where the disk has no room for
        the log."""
        self._folder = folder
        self._environment = environment
        self._page = int(environment.stat()["psize"])
        self._after = max(OFTEN, min(spare, SELDOM))
        self._data = os.open(folder / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
        self._segments = segments_in(folder)
        self._segment: Segment
        self._generation = 0
        """Of the segment that this process writes to; 0: of none."""
        self._mark = b""
        self._next = 0
        """The transaction that its next record is of."""
        self._offset = self._last = 0
        self._written = 0
        """Bytes of pages since the base, roughly."""
        self._pins: list[lmdb.Transaction] = []
        self._writing: _Writing | None = None
        self.checkpoints = 0

    # The writer lock is held in what follows ------------------------------------------------------------------------

    def append(self, transaction: int, batch: Batch) -> None:
        """Makes durable what LMDB is about to commit as that transaction.

        Raises OSError where the disk has no room, and nothing was appended; `Broken` where it failed.
        """
        body = encode(batch)
        if not self._is_current(transaction):
            self._begin_anew(transaction - 1)
        self._checkpoint_if_due(transaction - 1, len(body))
        segment = self._segment
        settles = self._writing is not None and self._writing.done()
        if settles:
            segment.settle(self._generation)
        end = segment.append(self._offset, self._mark, transaction, body)
        segment.sync()
        if settles:
            self._settled()
        self._last, self._offset, self._next = self._offset, end, transaction + 1
        rows = sum(map(len, batch.puts.values())) + len(batch.deletes) + len(batch.drops)
        self._written += (rows + _TREES) * self._page + batch.size

    def left_over(self, transaction: int) -> list[Batch]:
        """What a process that died had written down of that transaction of LMDB's and of those after it: the batches that
        must be applied.

        At the base that may be all that was acknowledged: the file was put back, and nobody brought it forward. Elsewhere
        it is one record at most, of which nobody was told, and which nobody may find after a failure of the power either,
        once we have shown the store without it. Or it was all applied, in one transaction."""
        if self._recorded() < transaction:
            return []
        found = _since_base(self._segments)
        if found is not None and found[0].base == transaction - 1:
            return [decode(body) for body in found[1]]
        self._begin_anew(transaction - 1)
        return []

    def take_back(self) -> None:
        """LMDB refused what was appended last: it must not come back."""
        self._segment.cut(self._last)
        self._offset, self._next = self._last, self._next - 1

    def _is_current(self, transaction: int) -> bool:
        """Whether nobody else has written since our last record, in the log or past it."""
        if not self._generation or transaction != self._next:
            return False
        return all(each is self._segment or each.generation() < self._generation for each in self._segments)

    def _checkpoint_if_due(self, base: int, length: int) -> None:
        no_room = self._offset + length > self._segment.size
        if self._writing is not None and (no_room or self._written > BEHIND * self._after):
            self._writing.wait()
            self._segment.settle(self._generation)
            self._segment.sync()
            self._settled()
        if self._writing is None and self._written and (no_room or self._written > self._after):
            self._begin(Head(self._generation + 1, base, self._pages(base), False, new_salt()))
            self._writing = _Writing(self._data)

    def _begin_anew(self, base: int) -> None:
        """A segment at LMDB's newest transaction, which is on the disk when this returns, and so is its head.

        Raises `Broken`, also for what a checkpoint that was under way met: the system tells of it once."""
        if self._writing is not None:
            self._writing.wait()
        try:
            os.fdatasync(self._data)
        except OSError as error:
            raise Broken(f"{self._folder / DATA_FILE} could not be written to the disk: {error}") from error
        generation = 1
        found = newest(self._segments)
        if found is not None:
            segment, head = found
            # Its process may have died before it had this on the disk, and the one before it is about to go.
            segment.begin(head)
            segment.sync()
            generation = head.generation + 1
        self._begin(Head(generation, base, self._pages(base), True, new_salt()))
        self._segment.sync()
        self._settled()

    def _begin(self, head: Head) -> None:
        self._segment = self._segments[head.generation % len(FILES)]
        # A head that a power failure cuts off is begun again under its number, but with another salt: no record of before
        # fits it then.
        self._offset = self._segment.begin(head)
        self._generation, self._mark, self._next = head.generation, head.mark, head.base + 1
        self._written = 0
        self._pins.append(self._environment.begin())

    def _settled(self) -> None:
        """The base of our segment is on the disk, and that it is: what was before may go."""
        for pin in self._pins[:-1]:
            pin.abort()
        del self._pins[:-1]
        self._writing = None
        self.checkpoints += 1

    def _pages(self, base: int) -> bytes:
        """The first two pages, of which one is the base's."""
        pages = os.pread(self._data, 2 * self._page, 0)
        if _newest_of(pages) != base:
            raise Broken(f"{self._folder / DATA_FILE} does not begin as LMDB 0.9 writes it")
        return pages

    # It is not held in what follows ---------------------------------------------------------------------------------

    @property
    def pins(self) -> bool:
        """Whether a checkpoint would let LMDB use more pages again."""
        return self._written > 0

    def is_ahead(self) -> bool:
        """Whether it has a record that LMDB knows nothing of."""
        return self._recorded() > int(self._environment.info()["last_txnid"])

    def _recorded(self) -> int:
        """The transaction of the last record, or the base that there is none after; 0: there is neither."""
        found = newest(self._segments)
        if found is None:
            return 0
        segment, head = found
        return max((number for number, _ in segment.records(head)), default=head.base)

    def mark_failed(self) -> None:
        """The next writer must put the file back, or not open it: what could not be written may be lost from memory, too."""
        with suppress(OSError):  # the disk has failed already
            (self._folder / FAILED_FILE).touch()

    def checkpoint(self) -> None:
        """Has all on the disk in LMDB's own file: nothing is left in the log, and nothing pinned that is older."""
        with self._environment.begin(write=True) as transaction:
            self._begin_anew(transaction.id() - 1)

    def close(self, *, whole: bool = True) -> None:
        """`whole`: leave nothing in the log, unless somebody else writes there by now."""
        try:
            if self._writing is not None:
                self._writing.wait()
            if whole and self._is_current(self._next):
                self.checkpoint()
        finally:
            for pin in self._pins:
                pin.abort()
            for segment in self._segments:
                segment.close()
            os.close(self._data)


class _Writing:
    """A file on its way to the disk, in a thread: all it does is wait for the system call."""

    def __init__(self, descriptor: int) -> None:
        self._written = False
        self._error: OSError | None = None
        self._thread = Thread(target=self._run, args=(descriptor,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
            self._written = True
        except OSError as error:
            self._error = error

    def done(self) -> bool:
        """Raises `Broken` if it failed."""
        if self._thread.is_alive():
            return False
        if not self._written:
            raise Broken(f"a checkpoint could not be written to the disk: {self._error}") from self._error
        return True

    def wait(self) -> None:
        """Raises `Broken` if it failed."""
        self._thread.join()
        self.done()


@contextmanager
def opening(folder: Path) -> Iterator[list[Batch]]:
    """While a writer opens the database. Gives the batches that it must apply first, in order: the file has been put back
    to how it was before them. Nobody else opens it meanwhile: LMDB would take the state that was put back for the
    newest, or have us take an older page for it.

    Raises `Broken` where the log is not whole, OSError where it may not be written.
    """
    with _nobody_opens(folder, fcntl.LOCK_EX):
        # Looked at first: whoever has the database open beside us may leave one at any time, which is not ours to take.
        marked = (folder / FAILED_FILE).exists()
        found = _unfinished(folder) if (folder / FILES[0]).exists() else None
        if found is None:
            yield []
            if marked:
                (folder / FAILED_FILE).unlink(missing_ok=True)
        else:
            pages, bodies = found
            # Who is killed between the two pages leaves something that was never the state, and a reader may open it.
            with suppress(OSError):  # a disk that is full is recovered all the same
                (folder / FAILED_FILE).touch()
            data = os.open(folder / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.pwrite(data, pages, 0)
                os.fdatasync(data)
            finally:
                os.close(data)
            (folder / FAILED_FILE).unlink(missing_ok=True)
            yield [decode(body) for body in bodies]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """While who only reads opens the database: no writer puts anything back meanwhile."""
    with _nobody_opens(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def _nobody_opens(folder: Path, how: int) -> Iterator[None]:
    """Holds the database's own file by `flock`, which LMDB does not use. A reader process sees no file but this one."""
    try:
        descriptor = os.open(folder / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # a new store: there is nothing to put back
        return
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def needs_recovery(folder: Path) -> bool:
    """Whether only a writer can open it, since the log holds what the database's file may not."""
    return (folder / FILES[0]).exists() and _unfinished(folder) is not None


def _unfinished(folder: Path) -> tuple[bytes, list[bytes]] | None:
    """The first pages at the base of the log, and the records since; None: there are none, or they are of no use."""
    if _is_open(folder):
        if (folder / FAILED_FILE).exists():
            raise Broken(
                f"{folder} could not be written to the disk, and what is in memory is not to be trusted: "
                "end whoever reads it, then start the writer again"
            )
        return None
    if not (folder / DATA_FILE).exists():
        raise Broken(f"{folder} has a log and no {DATA_FILE}: files of a store belong together")
    segments = [Segment(folder / name, read_only=True) for name in FILES if (folder / name).exists()]
    try:
        found = _since_base(segments)
    finally:
        for segment in segments:
            segment.close()
    if found is None:
        return None
    first, bodies = found
    last = first.base + len(bodies)
    with open(folder / DATA_FILE, "rb") as file:
        found_there = _newest_of(file.read(len(first.pages)))
    if found_there > last:
        raise Broken(
            f"{folder / DATA_FILE} is at transaction {found_there} and its log ends at {last}: the end of the log is lost, "
            "or the files are not of one store; restore a backup"
        )
    return (first.pages, bodies) if bodies else None


def _since_base(segments: list[Segment]) -> tuple[Head, list[bytes]] | None:
    """The beginning of the log as far as it is needed, and all records since; None: it was never begun. Raises `Broken`
    where it is not whole."""
    found = newest(segments)
    _refuse_headless(segments, 0 if found is None else found[1].generation)
    if found is None:
        return None
    chain = [found]
    if not found[1].settled:
        before = [each for each in segments if each is not found[0]]
        chain = [each for each in [newest(before)] if each is not None] + chain
    first = chain[0][1]
    last, bodies = first.base, list[bytes]()
    for segment, head in chain:
        if not first.settled or head.base != last or head.generation > first.generation + 1:
            raise Broken(f"{segment.path} does not go on where the log before it ends: restore a backup")
        records = list(segment.records(head))
        bodies += [body for _, body in records]
        last += len(records)
    if chain[-1][0].goes_on(chain[-1][1]):
        raise Broken(
            f"{chain[-1][0].path} is damaged: the record of transaction {last + 1} is not whole, and there is one "
            "after it; restore a backup"
        )
    return first, bodies


def _refuse_headless(segments: list[Segment], newest_generation: int) -> None:
    """Raises `Broken` for a segment that may be needed and cannot be read: its head is not whole, and there are two records
    after it. The second was begun when the first, and with it the head, was on the disk."""
    for segment in segments:
        if segment.head() is None and segment.headless(mmap.PAGESIZE) > newest_generation:
            raise Broken(f"{segment.path} has records and its beginning is damaged: restore a backup")


def _newest_of(pages: bytes) -> int:
    """The newest transaction that LMDB's first two pages name; -1: they do not look like that."""
    found = -1
    for start in (0, len(pages) // 2):
        if _meta_mark.unpack_from(pages, start + _META_MARK) != (_MAGIC, _VERSION):
            return -1
        found = max(found, _meta_transaction.unpack_from(pages, start + _META_TRANSACTION)[0])
    return found


def is_open_here(folder: Path, is_open: bool) -> None:
    """This process has opened the database in a folder, or closed it."""
    (_here.add if is_open else _here.discard)(_identity_of(folder))


def _identity_of(folder: Path) -> tuple[int, int, int]:
    found = (folder / LOCK_FILE).stat()
    return os.getpid(), found.st_dev, found.st_ino


def _is_open(folder: Path) -> bool:
    """Whether a process, this one or another, has the database open: LMDB holds a lock on the first byte of its lock file
    for as long."""
    try:
        if _identity_of(folder) in _here:
            return True
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = _flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
        return bool(_flock.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)
