"""Group commit: transactions that arrive while others are collected share one batch, and with it one sync.

A transaction is admitted against the durable state *and* what the group already holds, so the members of a
group are serialised in the order of their admission, each with a revision of its own. What a group holds is
invisible to readers and acknowledged to nobody until `flush` returns from the engine; if the engine refuses,
none of it ever was. So a conflict, which may be with what the group holds, is told behind it: whoever reads then finds what
he met, and where the engine refused that, he is held against what there is instead.

A group takes so much of class `bulk` and no more: what is over waits for the next ones, in its order, and whoever else
arrives meanwhile is not behind it. It never asks more of the engine than one batch may have, in bytes or operations: whom it
has no room for waits for the next one, too, and so does whoever writes after him. What no batch has room for is
refused; that it is not cut into several is docs/decisions/0027-a-bound-on-operations.md.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from msgspec.structs import replace

from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, BadRequest, Conflict, TooLarge
from atoll.ipc.system.state import NEVER, Ahead, Committed, Compacted, Expect, Range, StoreFull

from . import horizons, layout
from . import ranges as ranges_of
from .engine import Batch, BatchTooLarge, ConditionFailed, Full, Snapshot, Table
from .history import History
from .ownership import CLAIM, Disowned, Ownership
from .pins import OWN
from .versions import newest, time_of

GROUP_LIMIT: Final = 1024
"""Transactions in one group at most."""
IN_PARTS: Final = "commit it in parts, each of which leaves the state whole"
"""What to do with a transaction that is too large."""
APART: Final = "cut it into several rows, or put it into storage and its hash here"
"""What to do with a row that is."""
BULK_MOST: Final = 1 << 20
"""Bytes written by transactions of class `bulk` in one group at most, or one such transaction."""
_WINDOW: Final = 4096
"""Up to so many revisions, a range is checked by what was written since; beyond, by looking through the range
itself."""
ROW_MOST: Final = (1 << 20) - (16 << 10)
"""Bytes of a key and its value at most: with what a page or a change says besides they must go into a message."""
NOTE_MOST: Final = 8 << 10
"""Bytes of a note at most: it is in each change that is told."""
ID_MOST: Final = 64
"""Bytes of a commit's id at most, besides its keyspace's number."""
_EXPECTS_MOST: Final = 1 << 16
"""Keys of which one transaction may say at which revision they are."""


class Transaction(NamedTuple):
    """What one transaction asks for. Keys are absolute; `id` is as it lies in COMMITS."""

    badge: int
    writes: list[tuple[bytes, bytes | None]]
    expects: list[Expect | Range]
    id: bytes = b""
    reply: bytes = b""
    note: str = ""
    call: str = ""
    trace: int = 0
    others: tuple[int, ...] = ()
    reserved: bool = False
    time: int = 0
    """When it was asked for, in ns; its revision's time is at least this, and rises with the revisions."""
    bulk: bool = False
    """Others go first."""
    reads: bool = True
    """Who asks may read."""


Announce = Callable[[list[tuple[int, list[bytes]]]], None]
"""Told of each group's revisions and keys, after they are durable and before anyone is answered."""


_Asked = tuple[Transaction, Deferred[Committed]]
_Member = tuple[Transaction, Deferred[Committed], Committed | Conflict]


class Group:
    def __init__(self, history: History, ownership: Ownership, announce: Announce) -> None:
        self._history = history
        self._engine = history.engine
        self._ownership = ownership
        self._announce = announce
        self._last, self._time = history.last()
        self.groups = 0
        self.committed = 0
        self._waiting: deque[_Asked] = deque()
        """Bulk that was too much for this group, and whoever had no room in it. Only while the group holds something."""
        self._awaited: set[bytes] = set()
        """Their keys and ids."""
        self._clear()

    def _clear(self) -> None:
        self._batch = Batch()
        self._members: list[_Member] = []
        self._next = self._last
        self._next_time = self._time
        # Key to the revision at which the group writes it, 0 where it deletes it.
        self._heads: dict[bytes, int] = {}
        self._ids: dict[bytes, Committed] = {}
        self._written: list[tuple[int, list[bytes]]] = []
        self._since = 0
        """Time of the first revision that it holds."""
        self._bulk = 0
        self._crowded = False
        """Whether somebody was sent away for want of room."""

    def __len__(self) -> int:
        return len(self._members)

    @property
    def owns(self) -> bool:
        """Whether this process has committed anything: only then is it sure to be the one that stays."""
        return self._ownership.claimed

    @property
    def full(self) -> bool:
        """Whether it should be flushed before it takes more."""
        return (
            self._crowded
            or len(self._members) >= GROUP_LIMIT
            or self._batch.size * 4 >= self._engine.maximum_batch
        )

    def holds(self, key: bytes) -> bool:
        """Whether it, or whoever waits, writes a key."""
        return key in self._heads or key in self._awaited

    def reaches(self, time: int) -> bool:
        """Whether it holds what bears a time at or before one, in ns."""
        return bool(self._written) and self._since <= time

    def knows(self, id: bytes) -> bool:
        """Whether a transaction of that id, as it lies in COMMITS, is in it, or waits."""
        return id in self._ids or id in self._awaited

    def admit(self, transaction: Transaction, done: Deferred[Committed]) -> None:
        """Takes a transaction in, or settles it at once: refused, or done already by its id; or has it wait for the next
        group."""
        if transaction.bulk and (self._waiting or self._bulk >= BULK_MOST):
            self._wait(transaction, done)
            return
        try:
            if transaction.id or transaction.expects:
                with self._engine.snapshot() as snapshot:
                    if self._known(snapshot, transaction, done):
                        return
                    self._check(snapshot, transaction)
            if transaction.writes or transaction.id:
                self._write(transaction, done)
            else:
                self._members.append((transaction, done, Committed(self._next, self._next_time)))
        except Conflict as conflict:
            if self._written:
                self._members.append((transaction, done, conflict))
            else:
                done.fail(conflict)
        except AtollError as error:
            done.fail(error)

    def flush(self) -> None:
        """Makes the group durable, then settles its members.

        Raises `Disowned` or `Broken` with nothing settled: the process must end, and its clients learn that
        the outcome is unknown.
        """
        if not self._members:
            return
        members, written = self._members, self._written
        try:
            self._ownership.bind(self._batch)
            self._engine.commit(self._batch, reserved=all(member[0].reserved for member in members))
        except ConditionFailed as failed:
            raise Disowned(self._ownership.sentence(failed.found)) from None
        except (Full, BatchTooLarge) as refusal:
            self._clear()
            waiting = self._called()
            self._one_by_one(members, refusal)
            self._refill(waiting)
            return
        self._ownership.bound()
        self._last, self._time = self._next, self._next_time
        self.groups += 1
        self.committed += len(written)
        self._clear()
        if written:
            self._announce(written)
        for _, done, outcome in members:
            if isinstance(outcome, Conflict):
                done.fail(outcome)
            else:
                done.complete(outcome)
        self._refill(self._called())

    def _wait(self, transaction: Transaction, done: Deferred[Committed]) -> None:
        self._waiting.append((transaction, done))
        self._awaited.update(key for key, _ in transaction.writes)
        self._awaited.add(transaction.id)

    def _called(self) -> deque[_Asked]:
        """Those who waited, who do so no more."""
        waiting, self._waiting = self._waiting, deque()
        self._awaited = set()
        return waiting

    def _refill(self, waiting: deque[_Asked]) -> None:
        """Those who waited are next."""
        for transaction, done in waiting:
            self.admit(transaction, done)

    def _one_by_one(self, members: list[_Member], refusal: Full | BatchTooLarge) -> None:
        """A group did not fit: what is small, or the kernel's, still may, so each has its own try."""
        if len(members) == 1:
            transaction, done, _ = members[0]
            done.fail(_refused(refusal, transaction))
            return
        for transaction, done, _ in members:
            self.admit(transaction, done)
            self.flush()

    def _known(self, snapshot: Snapshot, transaction: Transaction, done: Deferred[Committed]) -> bool:
        """Whether its id says that it was committed before, or that its first delivery is in this group."""
        if not transaction.id:
            return False
        twin = self._ids.get(transaction.id)
        if twin is not None:
            # Settled after the first one: members are settled in order, and both or none become durable.
            self._members.append((transaction, done, told(twin, transaction.reply, transaction.reads)))
            return True
        before = committed_before(snapshot, transaction.id)
        if before is not None:
            done.complete(told(before, transaction.reply, transaction.reads))
        return before is not None

    def _write(self, transaction: Transaction, done: Deferred[Committed]) -> None:
        writes = transaction.writes
        if len(writes) > 1:
            writes = list(dict(writes).items())
        # Before a revision is taken: what the engine would refuse alone must not take a group with it.
        size, operations = self._measure(transaction, writes)
        # A client that does not wait for its answers may have asked for both: what it asked for last must stand.
        if self._members and (self._crowded or not self._has_room(size, operations)):
            self._crowded = True
            self._wait(transaction, done)
            return
        if transaction.bulk:
            self._bulk += size
        revision = self._next = self._next + 1
        time = self._next_time = max(transaction.time, self._next_time + 1)
        if not self._written:
            self._since = time
        keys = layout.put_versions(self._batch, writes, revision)
        for key, value in writes:
            self._heads[key] = 0 if value is None else revision
        if transaction.id:
            self._batch.put(Table.COMMITS, transaction.id, layout.pack(revision))
            self._ids[transaction.id] = Committed(revision, time, transaction.reply, True)
        entry = layout.Entry(
            transaction.badge,
            transaction.call,
            transaction.trace,
            transaction.note,
            transaction.id,
            transaction.reply,
            keys,
            transaction.others,
        )
        self._batch.append(revision, layout.event(time, entry))
        self._written.append((revision, keys))
        self._members.append((transaction, done, Committed(revision, time)))

    def _has_room(self, size: int, operations: int) -> bool:
        return (
            self._batch.size + size <= self._engine.maximum_batch
            and self._batch.operations + operations + CLAIM <= self._engine.maximum_operations
        )

    def _measure(self, transaction: Transaction, writes: list[tuple[bytes, bytes | None]]) -> tuple[int, int]:
        """Bytes that it takes, roughly, and operations. Raises `TooLarge`."""
        if len(note := transaction.note.encode()) > NOTE_MOST:
            raise TooLarge("a note", len(note), NOTE_MOST, do="shorten it")
        if (length := len(transaction.id) - layout.KEYSPACE_SIZE) > ID_MOST:
            raise BadRequest("id", f"at most {ID_MOST} bytes", f"{length}")
        size = len(transaction.reply) + len(note) + 256
        operations = len(writes) + 2 if transaction.id else len(writes) + 1
        for key, value in writes:
            length = len(key)
            size += 4 * length + 160
            if value is not None:
                if len(value) > ROW_MOST - length + layout.KEYSPACE_SIZE:
                    refuse_large(writes)
                size += len(value)
                operations += len(value) > layout.INLINE
            if 2 * length + layout.OVERHEAD > self._engine.maximum_key:
                row = len(layout.escape(key)) + layout.OVERHEAD
                if row > self._engine.maximum_key:
                    name = key[layout.KEYSPACE_SIZE :][:20]
                    raise TooLarge(f"the key {name!r}...", row, self._engine.maximum_key, do="shorten it")
        if size > self._engine.maximum_batch:
            raise TooLarge(
                f"a transaction of {len(writes)} writes", size, self._engine.maximum_batch, do=IN_PARTS
            )
        if operations + CLAIM > self._engine.maximum_operations:
            limit = self._engine.maximum_operations - CLAIM
            raise TooLarge(
                f"a transaction of {len(writes)} writes", operations, limit, "operations", IN_PARTS
            )
        return size, operations

    def _check(self, snapshot: Snapshot, transaction: Transaction) -> None:
        """Raises `Conflict` where something is not as a transaction expects it, `TooLarge` where that is too much to ask."""
        expects, badge = transaction.expects, transaction.badge
        ranges = [expect for expect in expects if isinstance(expect, Range)]
        keys = [expect for expect in expects if isinstance(expect, Expect)]
        for count, most, what in (
            (len(ranges), ranges_of.MOST, "ranges"),
            (len(keys), _EXPECTS_MOST, "expectations"),
        ):
            if count > most:
                raise TooLarge("a transaction", count, most, what, IN_PARTS)
        for expect in keys:
            self._check_key(snapshot, expect, badge)
        if ranges:
            self._check_ranges(snapshot, ranges, badge)

    def _check_key(self, snapshot: Snapshot, expect: Expect, badge: int) -> None:
        found = self._found(snapshot, expect.key)
        if expect.revision == NEVER:
            if expect.key in self._heads or newest(snapshot, expect.key, layout.LAST) is not None:
                raise self._conflict(expect.key, NEVER, found, badge)
        elif found != expect.revision:
            raise self._conflict(expect.key, expect.revision, found, badge)

    def _check_ranges(self, snapshot: Snapshot, ranges: list[Range], badge: int) -> None:
        for wanted in ranges:
            kept = horizons.highest(snapshot, horizons.span(wanted.start, wanted.end))
            if wanted.revision < kept.horizon:
                # A deletion since may have left no trace.
                raise Compacted(revision=wanted.revision, horizon=kept.horizon)
            if wanted.revision > self._last:
                raise Ahead(revision=wanted.revision, head=self._last)
        mapped = ranges_of.Ranges(ranges)
        for key, revision in self._written_since(snapshot, mapped):
            expected = mapped.revision_of(key)
            if expected is not None and revision > expected:
                raise self._conflict(key, expected, revision, badge)

    def _conflict(self, key: bytes, expected: int, found: int, badge: int) -> Conflict:
        """As it is told to the owner of a transaction: which keys another party read is not the owner's to know."""
        own = badge in (OWN, layout.keyspace_of(key))
        return self._history.conflict(key if own else key[: layout.KEYSPACE_SIZE], expected, found)

    def _found(self, snapshot: Snapshot, key: bytes) -> int:
        held = self._heads.get(key)
        if held is not None:
            return held
        row = newest(snapshot, key, layout.LAST)
        return 0 if row is None or row[1] == layout.DELETED else layout.revision_of(row[0])

    def _written_since(self, snapshot: Snapshot, ranges: ranges_of.Ranges) -> Iterator[tuple[bytes, int]]:
        """Keys that were written, in the store or the group: all those of the ranges since their revisions, and others."""
        for revision, keys in self._written:
            for key in keys:
                yield key, revision
        recent = self._last
        for wanted in ranges:
            if self._last - wanted.revision <= _WINDOW:
                recent = min(recent, wanted.revision)
            else:
                yield from _newest_in(snapshot, wanted)
        for revision, raw in snapshot.feed(recent) if recent < self._last else ():
            for key in layout.entry_of(raw).keys:
                yield key, revision


def _newest_in(snapshot: Snapshot, wanted: Range) -> Iterator[tuple[bytes, int]]:
    """Keys of a range that have been written since its revision."""
    cursor = snapshot.cursor(Table.VERSIONS)
    row, stop = cursor.seek(layout.escape(wanted.start)), layout.escape(wanted.end)
    while row is not None and row[0] < stop:
        if layout.revision_of(row[0]) > wanted.revision:
            yield layout.key_of(row[0]), layout.revision_of(row[0])
        row = cursor.seek(layout.past(row[0]))


def refuse_large(writes: list[tuple[bytes, bytes | None]]) -> None:
    """Raises `TooLarge` for a row that no answer would have room for."""
    for key, value in writes:
        size = len(key) - layout.KEYSPACE_SIZE + len(value or b"")
        if size > ROW_MOST:
            raise TooLarge(f"the row {key[layout.KEYSPACE_SIZE :][:20]!r}", size, ROW_MOST, do=APART)


def committed_before(snapshot: Snapshot, id: bytes) -> Committed | None:
    """What the commit with that id came to, if there was one."""
    raw = snapshot.get(Table.COMMITS, id)
    if raw is None:
        return None
    revision = int.from_bytes(raw, "big")
    event = snapshot.event(revision)
    if event is None:
        return Committed(revision, time_of(snapshot, revision), None, True)
    return Committed(revision, layout.time_of(event), layout.entry_of(event).reply, True)


def told(before: Committed, reply: bytes, reads: bool) -> Committed:
    """What is told of a commit to who asks for it again, with a reply of his own. Ids can be guessed, and are the
    keyspace's, whoever committed; and a reply may say what was in a row."""
    return before if reads or before.reply in (None, reply) else replace(before, reply=None)


def _refused(refusal: Full | BatchTooLarge, transaction: Transaction) -> AtollError:
    if isinstance(refusal, Full):
        return StoreFull(refusal.what, refusal.used, refusal.limit)
    return BadRequest(
        f"a transaction of {len(transaction.writes)} writes", "one that the engine takes", str(refusal)
    )
