"""The engine on LMDB: one file, one writer, any number of processes that read.

What is settled here and why:

- The map is reserved large at open (address space, no memory) and never grown; what bounds the store is
  `limit`, which is soft.
- The file is preallocated in steps, ahead of what is used, `reserve` included. So a full disk shows itself
  when a step is allocated, where it can be refused in peace, and not under a commit; and the kernel's class
  always finds room.
- A commit is durable by the log that lies beside the file, and LMDB does not wait for the disk (`checkpoint.py`).
- After a failed *sync* the page cache may have dropped what it could not write, so the engine refuses everything from
  then on.
- Readers of killed processes keep their slots, and pin pages, until someone looks: at open, at each pass of compaction, and
  where the file would have to grow beyond what is allowed.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, cast

import lmdb

from atoll.ipc.folders import sync_folder

from .checkpoint import DATA_FILE, Log, is_open_here, needs_recovery, opening, reading
from .engine import Batch, BatchTooLarge, Broken, ConditionFailed, Full, Row, Table, check_size
from .layout import pack

STEP: Final = 32 << 20
"""Bytes by which the file grows."""
_LEAST_STEP: Final = 256 << 10
SLACK: Final = 2 << 20
"""Bytes of unused preallocated file below which the next step is taken; more than branch pages and free list
of one batch."""
FEED: Final = None
"""The events, among the tables."""
_TABLES: Final = (*Table, FEED)
_CUT_SHORT: Final = os.strerror(errno.EIO)
_NO_SPACE: Final = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _name(table: Table | None) -> bytes:
    return b"events" if table is FEED else table.name.lower().encode()


class LmdbEngine:
    """An `Engine` in the folder `path`. Opened for writing by one process at a time: the node's lock sees to
    that."""

    maximum_batch: int = 16 << 20
    maximum_operations: int = 1 << 19
    """LMDB has no such bound; no batch of rows that is small enough has as many."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limit: int = 16 << 30,
        reserve: int = 8 << 20,
        map_size: int = 64 << 30,
        read_only: bool = False,
    ) -> None:
        self._path = Path(path)
        self._limit = min(limit, map_size - (64 << 20))
        self._reserve = reserve
        self._read_only = read_only
        self._broken: str | None = None
        self._commits = 0
        if read_only:
            while not self._open_as_it_is(map_size):
                LmdbEngine(path, limit=limit, reserve=reserve, map_size=map_size).close()
        else:
            if not self._path.exists():
                self._path.mkdir(mode=0o700, parents=True)
                sync_folder(self._path.absolute().parent)
            with opening(self._path) as batches:
                self._open(map_size)
                try:
                    self._log = Log(self._path, self._environment, spare=reserve)
                    with self._marking():
                        self._recover(batches)
                except BaseException:
                    self._close_environment()
                    raise
        self.maximum_key = self._environment.max_key_size()
        self._page = int(self._environment.stat()["psize"])
        self._allocated = (self._path / DATA_FILE).stat().st_size
        self._growth_refused = False
        if not read_only:
            try:
                with self._marking():
                    self._grow(0)
            except BaseException:
                self.close()
                raise

    def _open_as_it_is(self, map_size: int) -> bool:
        """False: only a writer can, which has to recover it first."""
        with reading(self._path):
            if needs_recovery(self._path):
                return False
            self._open(map_size)
        return True

    def _open(self, map_size: int) -> None:
        self._environment = lmdb.open(
            str(self._path),
            map_size=map_size,
            max_dbs=len(Table) + 1,
            max_readers=512,
            readonly=self._read_only,
            create=not self._read_only,
            mode=0o600,
            max_spare_txns=8,
            # What is durable is so by the log.
            sync=False,
            # Keys are scattered over a large map: reading ahead fetches what nobody asked for.
            readahead=False,
        )
        is_open_here(self._path, True)
        self._tables: dict[Table | None, lmdb._Database] = {}
        try:
            if not self._read_only:
                self._environment.reader_check()
            for table in _TABLES:
                with nullcontext() if self._read_only else suppress(lmdb.NotFoundError):
                    self._tables[table] = self._environment.open_db(_name(table), create=False)
        except BaseException:
            self._close_environment()
            raise

    def _close_environment(self) -> None:
        self._environment.close()
        is_open_here(self._path, False)

    @contextmanager
    def _marking(self) -> Iterator[None]:
        """While something is brought to the disk that no commit waits for: of a failure the system tells once, and the next
        writer must not overlook it either."""
        try:
            yield
        except Broken as broken:
            self._break(broken)
            raise

    def _recover(self, batches: list[Batch]) -> None:
        """Brings the database forward by the batches of the log, and makes the tables that it has not, in one transaction:
        none of the database's may be without its record in the log."""
        missing = [table for table in _TABLES if table not in self._tables]
        # Whoever is in the midst of a commit holds the lock: it is not waited for if there is no need.
        if not batches and not missing and not self._log.is_ahead():
            return
        with self._environment.begin(write=True) as transaction:
            batches = batches or self._log.left_over(transaction.id())
            for table in missing:
                self._tables[table] = self._environment.open_db(_name(table), txn=transaction)
            for batch in batches:
                self._apply(transaction, batch)
            if missing and not batches:
                self._log.append(transaction.id(), Batch())
        if batches:
            self._log.checkpoint()

    @contextmanager
    def snapshot(self) -> Iterator["LmdbSnapshot"]:
        if self._broken is not None:
            raise Broken(self._broken)
        transaction = self._environment.begin()
        try:
            yield LmdbSnapshot(transaction, self._tables)
        finally:
            transaction.abort()

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        if self._broken is not None:
            raise Broken(self._broken)
        check_size(batch, self)
        logged = False
        try:
            self._make_room(batch.size, reserved)
            with self._environment.begin(write=True) as transaction:
                self._apply(transaction, batch)
                # LMDB counts no transaction that changes nothing, and so must not the log.
                if batch.operations > len(batch.conditions):
                    # Durable from here on, and seen by nobody before LMDB has it.
                    self._log.append(transaction.id(), batch)
                    logged = True
        except (lmdb.Error, OSError, Broken, RuntimeError) as error:
            refusal = self._refusal(error)
            if isinstance(refusal, Broken):
                self._break(refusal)
            elif logged:
                try:
                    self._log.take_back()
                except Broken as broken:
                    self._break(broken)
                    raise
            raise refusal from error
        self._commits += 1

    def settle(self) -> None:
        if self._broken is not None:
            raise Broken(self._broken)
        try:
            self._log.checkpoint()
        except (lmdb.Error, OSError, Broken) as error:
            broken = Broken(f"{self._path} could not be brought to the disk: {error}")
            self._break(broken)
            raise broken from error

    def _break(self, broken: Broken) -> None:
        """From here on everything is refused."""
        self._broken = str(broken)
        self._log.mark_failed()

    def _refusal(self, error: lmdb.Error | OSError | Broken | RuntimeError) -> Full | BatchTooLarge | Broken:
        """What the engine says to an error under a commit."""
        if isinstance(error, Broken):
            return Broken(f"a commit to {self._path} failed: {error}")
        if isinstance(error, lmdb.MapFullError):
            return Full("the map is full", self._high_water(), self._limit)
        if isinstance(error, lmdb.BadValsizeError):
            return BatchTooLarge(str(error))
        if isinstance(error, lmdb.DiskError) or any(text in str(error) for text in _NO_SPACE):
            return Full("the disk is full", self._high_water(), self._allocated)
        # LMDB says so, too, of a write that was cut short; what the medium refuses is found when it is synced.
        if self._growth_refused and isinstance(error, lmdb.Error) and _CUT_SHORT in str(error):
            return Full("the disk is full", self._high_water(), self._allocated)
        return Broken(f"a commit to {self._path} failed: {error}")

    def forget_the_dead(self) -> None:
        self._environment.reader_check()

    def statistics(self) -> dict[str, int]:
        info = self._environment.info()
        return {
            "used": self._used(),
            "limit": self._limit,
            "reserve": self._reserve,
            "file": self._high_water(),
            "allocated": self._allocated,
            "readers": int(info["num_readers"]),
            "commits": self._commits,
            "checkpoints": 0 if self._read_only else self._log.checkpoints,
        }

    def close(self) -> None:
        try:
            if not self._read_only:
                with self._marking():
                    self._log.close(whole=self._broken is None)
        finally:
            self._close_environment()

    def _apply(self, transaction: lmdb.Transaction, batch: Batch) -> None:
        for condition in batch.conditions:
            found = cast(bytes | None, transaction.get(condition.key, db=self._tables[condition.table]))
            if found != condition.value:
                raise ConditionFailed(condition, found)
        for table, rows in batch.puts.items():
            with transaction.cursor(self._tables[table]) as cursor:
                cursor.putmulti(rows, append=table is Table.VALUES)
        for table, key in batch.deletes:
            transaction.delete(key, db=self._tables[table])
        for position in batch.drops:
            transaction.delete(pack(position), db=self._tables[FEED])
        if batch.events:
            rows = [(pack(position), event) for position, event in batch.events]
            with transaction.cursor(self._tables[FEED]) as cursor:
                last = cast(bytes, cursor.key()) if cursor.last() else b""
                if [last, *(key for key, _ in rows)] != sorted({last, *(key for key, _ in rows)}):
                    raise ValueError(f"events {rows[0][0].hex()}... do not come after {last.hex()}")
                cursor.putmulti(rows, append=True)

    def _make_room(self, size: int, reserved: bool) -> None:
        """Sees that a batch fits into what is preallocated and allowed, or raises `Full` before a page was
        touched."""
        need = 2 * size + SLACK // 4
        high = self._high_water()
        if high + need + SLACK + self._reserve > self._allocated:
            self._grow(need)
        ceiling = self._limit
        if self._growth_refused:
            ceiling = min(ceiling, self._allocated)
        if not reserved:
            ceiling -= self._reserve
        if high + need <= ceiling:
            return
        # Above the high-water mark is nothing left, but pages below it may be free: only now is it worth
        # counting them, and having those back that wait for a checkpoint, or for somebody dead.
        self.forget_the_dead()
        if self._log.pins:
            self._log.checkpoint()
        used = self._used()
        if used + need > ceiling:
            raise Full(
                "the disk is full" if self._growth_refused else "the store's limit is reached", used, ceiling
            )

    def _grow(self, need: int) -> None:
        wanted = self._high_water() + need + SLACK + self._reserve + STEP
        wanted = min(-(-wanted // STEP) * STEP, self._limit + SLACK)
        if wanted <= self._allocated:
            return
        self._growth_refused = not self._allocate(wanted)
        step = (wanted - self._allocated) // 2
        # What is left of the disk may be less than a step: take what there is, in ever smaller pieces.
        while self._growth_refused and step >= _LEAST_STEP:
            if not self._allocate(self._allocated + step):
                step //= 2

    def _allocate(self, size: int) -> bool:
        """Extends the file to `size` bytes that are really there; False if the disk has not as much. Raises `Broken` where
        what is in the file could not be written."""
        descriptor = os.open(self._path / DATA_FILE, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(descriptor, self._allocated, size - self._allocated)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                raise Broken(f"{self._path / DATA_FILE} could not be written to the disk: {error}") from error
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return False
        finally:
            os.close(descriptor)
        self._allocated = size
        return True

    def _high_water(self) -> int:
        return (int(self._environment.info()["last_pgno"]) + 1) * self._page

    def _used(self) -> int:
        """Bytes in pages that hold something; those on the free list are not among them."""
        pages = 2
        with self._environment.begin() as transaction:
            for table in self._tables.values():
                stat = transaction.stat(table)
                pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages) * self._page


class LmdbSnapshot:
    def __init__(self, transaction: lmdb.Transaction, tables: Mapping[Table | None, lmdb._Database]) -> None:
        self._transaction = transaction
        self._tables = tables

    def get(self, table: Table, key: bytes) -> bytes | None:
        return cast(bytes | None, self._transaction.get(key, db=self._tables[table]))

    def cursor(self, table: Table) -> "LmdbCursor":
        return LmdbCursor(self._transaction.cursor(self._tables[table]))

    def event(self, position: int) -> bytes | None:
        return cast(bytes | None, self._transaction.get(pack(position), db=self._tables[FEED]))

    def feed(self, after: int) -> Iterator[tuple[int, bytes]]:
        with self._transaction.cursor(self._tables[FEED]) as cursor:
            if cursor.set_range(pack(after + 1)):
                for key, event in cursor:
                    yield int.from_bytes(key, "big"), cast(bytes, event)

    def bounds(self) -> tuple[int, int]:
        with self._transaction.cursor(self._tables[FEED]) as cursor:
            if not cursor.first():
                return 0, 0
            first = int.from_bytes(cursor.key(), "big")
            cursor.last()
            return first, int.from_bytes(cursor.key(), "big")


class LmdbCursor:
    def __init__(self, cursor: lmdb.Cursor) -> None:
        self._cursor = cursor

    def seek(self, key: bytes) -> Row | None:
        return cast(Row, self._cursor.item()) if self._cursor.set_range(key) else None

    def seek_before(self, key: bytes | None) -> Row | None:
        found = key is not None and self._cursor.set_range(key)
        moved = self._cursor.prev() if found else self._cursor.last()
        return cast(Row, self._cursor.item()) if moved else None

    def next(self) -> Row | None:
        return cast(Row, self._cursor.item()) if self._cursor.next() else None
