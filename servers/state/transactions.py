"""Open transactions: what parties have read and written so far, kept in memory until their owner finishes.

All reads are of the state at `begin`; what was read, ranges included, must still be so at the end: that makes
transactions serialisable. Those that only read never fail others, nor fail: they were when they began. Nothing
is in the store before `finish`, so a crash leaves nothing behind. A transaction's id is unguessable and is the
right to take part; each party writes under its own keyspace's right, and only the owner (badge and channel that
began it) ends it.

Who is called under a transaction gets the id of a *part* of it: unguessable, too, and good for as long as the
call is in hand. Whoever made the part ends it, either way: it joins, or all that was written in it is undone, and
nothing that was written beside it. What the callee sends afterwards, because it has not heard that nobody waits for it
any more, is refused; and it can undo no more than what was written in its part.
"""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

import msgspec

from atoll.ipc import chance, clock
from atoll.ipc.errors import Aborted, BadRequest, Overloaded, TooLarge
from atoll.ipc.system.state import NEVER, Committed, Expect, Item, Page, Range, UnknownTransaction

from . import ranges
from .group import IN_PARTS, refuse_large
from .history import AROUND, PAGE_BYTES, History
from .layout import keyspace_of
from .pins import OWN

ID_SIZE: Final = 16
OPEN_LIMIT: Final = 256
"""Open transactions of one keyspace at most."""
OPEN_BYTES: Final = 64 << 20
"""Bytes in open transactions of one keyspace at most."""
PARTS_LIMIT: Final = 256
"""Parts of one transaction that are in hand at most."""
_AROUND: Final = 64
"""Bytes that a write, or what was read, takes besides its key and value."""
LONGEST: Final = 3600.0
"""Seconds a transaction may stay open at most."""


class Part(msgspec.Struct, array_like=True):
    """What one call that is in hand does in a transaction."""

    start: int
    """Length of the log when it began."""
    badge: int
    client: int
    """Who made it, and alone ends it."""
    within: bytes
    """The part in which it was made; empty: the owner made it."""


class Open(msgspec.Struct, array_like=True):
    """One transaction. `seconds` is what was left when it was handed over; while it is open, `ends`
    counts."""

    badge: int
    client: int
    began: int
    """The revision that its reads see."""
    seconds: float
    log: list[tuple[bytes, bytes | None] | None] = []
    """Writes in order; a savepoint is a length of it. None: it was undone, and others came after it."""
    reads: dict[bytes, int] = {}
    ranges: list[Range] = []
    size: int = 0
    ends: float = 0.0
    parts: dict[bytes, Part] = {}
    expected: bool = False
    """Somebody has said of the committed state what it must be."""
    by: list[bytes] = []
    """The part in which each entry of the log was written, or in which that has joined; empty: the owner."""
    past: int | None = None
    """Of one whose id was committed before: what its owner's reads see. Others' are not led back there."""

    @property
    def writes(self) -> list[tuple[bytes, bytes | None]]:
        """What stands, in order."""
        return [entry for entry in self.log if entry is not None]

    def sees(self, key: bytes) -> int:
        """As of which revision a key is read."""
        own = self.badge in (OWN, keyspace_of(key))
        return self.began if self.past is None or not own else self.past

    @property
    def only_read(self) -> bool:
        """Whether all there is of it is what it saw when it began."""
        return not self.writes and not self.expected

    def parties(self) -> tuple[int, ...]:
        """Keyspaces, besides the owner's, that it writes to."""
        written = dict.fromkeys(keyspace_of(key) for key, _ in self.writes)
        return tuple(keyspace for keyspace in written if keyspace != self.badge)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[bytes, Open])


def led_back(done: Committed | None, rights: Collection[str], now: int) -> int | None:
    """As of which revision the owner of a transaction reads whose id was committed before; None: as of its beginning.

    Ids can be guessed, and are the keyspace's, whoever committed: without the right to the past they lead back no further
    than a transaction could be open."""
    if done is None or ("history" not in rights and now - done.time > LONGEST * 1e9):
        return None
    return done.revision - 1


class Transactions:
    def __init__(
        self,
        history: History,
        *,
        now: Callable[[], float] | None = None,
        new_id: Callable[[], bytes] = lambda: chance.token(ID_SIZE),
    ) -> None:
        self._history = history
        self._now = now or clock.monotonic
        self._new_id = new_id
        self._open: dict[bytes, Open] = {}
        self._whole: dict[bytes, bytes] = {}
        """By part, the transaction that it belongs to."""
        self._sizes: Counter[int] = Counter()
        """By keyspace, what its open transactions take."""

    def __len__(self) -> int:
        return len(self._open)

    def least(self) -> int | None:
        """The oldest revision that one of them reads; None where none is open."""
        now = self._now()
        seen = (
            each.began if each.past is None else each.past for each in self._open.values() if each.ends > now
        )
        return min(seen, default=None)

    def begin(
        self, badge: int, client: int, seconds: float, past: int | None = None, id: bytes = b""
    ) -> bytes:
        """`past`: what its owner's reads see, if it was committed before. `id`: as its owner has drawn it; empty: it is
        drawn here. Raises `BadRequest` for a deadline outside (0, 3600] s, `Overloaded` when the keyspace has too many
        open."""
        if id and self._is_begun(id, badge, client):
            return id
        if not 0 < seconds <= LONGEST:
            raise BadRequest("begin: deadline", f"more than 0 and at most {LONGEST:g} seconds", repr(seconds))
        now = self._now()
        self._drop_over(now)
        if sum(transaction.badge == badge for transaction in self._open.values()) >= OPEN_LIMIT:
            raise Overloaded(f"state (open transactions of keyspace {badge})")
        id = id or self._new_id()
        began = self._history.head()
        self._open[id] = Open(badge, client, began, seconds, ends=now + seconds, past=past)
        return id

    def _is_begun(self, id: bytes, badge: int, client: int) -> bool:
        """Whether a transaction of that id is the caller's already. Raises where it is somebody else's, or none's."""
        if len(id) != ID_SIZE:
            raise BadRequest("begin: transaction", f"{ID_SIZE} random bytes", f"{len(id)}")
        known = self._open.get(id)
        if id in self._whole or (known is not None and (known.badge, known.client) != (badge, client)):
            raise UnknownTransaction("this id is another client's")
        return known is not None

    def read(self, id: bytes, key: bytes) -> Item | None:
        """An item with revision 0 is the transaction's own write; its value may be None (deleted)."""
        transaction = self._get(id)
        for entry in reversed(transaction.log):
            if entry is not None and entry[0] == key:
                return Item(key, entry[1], 0, 0)
        item = self._history.get(key, transaction.sees(key))
        self._note_read(transaction, key, 0 if item is None else item.revision)
        return item

    def scan(self, id: bytes, start: bytes, end: bytes, limit: int) -> Page:
        transaction = self._get(id)
        sees = transaction.sees(start)
        page = self._history.range(start, end, limit, sees)
        more, seen_to = page.more, page.items[-1].key + b"\0" if page.more else end
        own = {key: value for key, value in transaction.writes if start <= key < seen_to}
        items = [item for item in page.items if item.key not in own]
        items += [Item(key, value, 0, 0) for key, value in own.items() if value is not None]
        items.sort(key=_key)
        fitting = _fitting(items)
        if fitting < len(items):
            del items[fitting:]
            more, seen_to = True, items[-1].key + b"\0"
        seen = transaction.ranges.copy()
        self._grow(transaction, self._note_range(seen, Range(start, seen_to, sees)))
        transaction.ranges = seen
        return Page(items, more, page.revision, seen_to if more else b"")

    def write(
        self, id: bytes, writes: list[tuple[bytes, bytes | None]], expects: list[Expect | Range]
    ) -> None:
        """Adds a party's writes and expectations; expectations speak of the committed state, not of the
        transaction's writes."""
        transaction = self._get(id)
        self._not_written(
            transaction,
            {each.key for each in expects if isinstance(each, Expect) and each.revision == NEVER},
        )
        # Nothing of it is added before all of it is known to fit.
        refuse_large(writes)
        reads: dict[bytes, int] = {}
        seen = transaction.ranges.copy()
        size = _size_of(writes)
        for expect in expects:
            if isinstance(expect, Expect):
                before = reads.get(expect.key, transaction.reads.get(expect.key))
                reads[expect.key] = self._agreed(transaction, expect.key, before, expect.revision)
                size += 0 if before is not None else len(expect.key) + _AROUND
            else:
                size += self._note_range(seen, expect)
        self._grow(transaction, size)
        transaction.expected = transaction.expected or bool(expects)
        transaction.reads |= reads
        transaction.ranges = seen
        transaction.log += writes
        transaction.by += [b"" if id in self._open else id] * len(writes)

    def is_repeated(self, id: bytes) -> bool:
        """Whether it was committed before, by its id."""
        return self._get(id).past is not None

    def meet(self, id: bytes, rows: dict[bytes, int]) -> None:
        """Rows that it was to append are there already, at these revisions: so they must be at the end."""
        self._not_written(self._get(id), rows)
        self.write(id, [], [Expect(key, revision) for key, revision in rows.items()])

    def _not_written(self, transaction: Open, keys: Collection[bytes]) -> None:
        """Raises `Conflict` where a transaction has itself written a key that is to be new."""
        for key, _ in transaction.writes if keys else ():
            if key in keys:
                raise self._history.conflict(key, NEVER, 0)

    def savepoint(self, id: bytes) -> int:
        return len(self._get(id).log)

    def undo(self, id: bytes, savepoint: int) -> None:
        transaction = self._get(id)
        whole = id in self._open
        least = 0 if whole else transaction.parts[id].start
        if not least <= savepoint <= len(transaction.log):
            raise BadRequest(
                "undo: savepoint",
                f"one of this transaction, {least} to {len(transaction.log)}",
                str(savepoint),
            )
        if whole:
            inner = list(transaction.parts)
            self._shrink(transaction, transaction.log[savepoint:])
            del transaction.log[savepoint:], transaction.by[savepoint:]
        else:
            inner = self._inside(transaction, id)
            self._undo_in({id, *inner}, transaction, savepoint)
        # Parts that began later have nothing left to write to.
        for part in inner:
            if part in transaction.parts and transaction.parts[part].start > savepoint:
                self._end(transaction, part)

    def share(self, id: bytes, badge: int, client: int) -> bytes:
        """A part of a transaction, for one call. Raises `Overloaded` when there are too many."""
        transaction = self._get(id)
        if len(transaction.parts) >= PARTS_LIMIT:
            raise Overloaded(f"state (calls under transaction {id.hex()[:8]})")
        part = self._new_id()
        within = b"" if id in self._open else id
        transaction.parts[part] = Part(len(transaction.log), badge, client, within)
        self._whole[part] = id if id in self._open else self._whole[id]
        return part

    def join(self, part: bytes, badge: int, client: int) -> None:
        """The call has been answered: what was written in its part stays, and nothing more is."""
        transaction, made = self._made(part, badge, client)
        joined = {part, *self._inside(transaction, part)}
        for at in range(made.start, len(transaction.by)):
            if transaction.by[at] in joined:
                transaction.by[at] = made.within
        self._end(transaction, part)

    def retract(self, part: bytes, badge: int, client: int) -> None:
        """The call has come to nothing: what was written in its part is undone, and nothing more is written there."""
        transaction, made = self._made(part, badge, client)
        self._undo_in({part, *self._inside(transaction, part)}, transaction, made.start)
        self._end(transaction, part)

    def _made(self, part: bytes, badge: int, client: int) -> tuple[Open, Part]:
        transaction = self._get(part)
        made = transaction.parts.get(part)
        if made is None or (made.badge, made.client) != (badge, client):
            raise UnknownTransaction("this is no part of a transaction, or one that another client made")
        return transaction, made

    def _inside(self, transaction: Open, part: bytes) -> list[bytes]:
        """The parts that were made in a part, and those in them."""
        made = [other for other, each in transaction.parts.items() if each.within == part]
        return made + [inner for each in made for inner in self._inside(transaction, each)]

    def _undo_in(self, parts: set[bytes], transaction: Open, start: int) -> None:
        """Undoes what was written in some parts from a savepoint on. Others' savepoints stay where they are."""
        for at in range(start, len(transaction.log)):
            if transaction.by[at] in parts:
                self._shrink(transaction, [transaction.log[at]])
                transaction.log[at] = None

    def _end(self, transaction: Open, part: bytes) -> None:
        """A part, and those made in it, take no more. One that was ended with another is no error."""
        if transaction.parts.pop(part, None) is not None:
            del self._whole[part]
            for inner in [other for other, made in transaction.parts.items() if made.within == part]:
                self._end(transaction, inner)

    def _drop(self, id: bytes) -> Open:
        transaction = self._open.pop(id)
        self._sizes[transaction.badge] -= transaction.size
        if not self._sizes[transaction.badge]:
            del self._sizes[transaction.badge]
        for part in transaction.parts:
            del self._whole[part]
        return transaction

    def _drop_over(self, now: float, but: Open | None = None) -> None:
        """Nobody asks any more for one whose deadline has passed: what it held is given back all the same. `but`: one in
        hand."""
        for over in [id for id, each in self._open.items() if each.ends <= now and each is not but]:
            self._drop(over)

    def end_of(self, gone: Callable[[int], bool]) -> None:
        """Ends those of clients that have gone, by the number of the channel: nobody else could."""
        for each in [each for each, transaction in self._open.items() if gone(transaction.client)]:
            self._drop(each)

    def take(self, id: bytes, badge: int, client: int) -> Open:
        """Ends a transaction and returns it, for its owner to commit or to forget."""
        transaction = self._get(id)
        if id not in self._open:
            raise UnknownTransaction("this is a part of a transaction")
        if (transaction.badge, transaction.client) != (badge, client):
            raise UnknownTransaction("this transaction was begun by another client")
        return self._drop(id)

    def forget(self, id: bytes, badge: int, client: int) -> None:
        """Ends a transaction of which nothing is to be; one that has ended, also by its deadline, is no error."""
        if id in self._open:
            with suppress(Aborted):
                self.take(id, badge, client)

    def hand_over(self) -> bytes:
        """All open transactions, for the next version of the server."""
        now = self._now()
        for transaction in self._open.values():
            transaction.seconds = transaction.ends - now
        return _encoder.encode(self._open)

    def take_over(self, state: bytes) -> None:
        now = self._now()
        for id, transaction in _decoder.decode(state).items():
            transaction.ends = now + transaction.seconds
            # Of a version that did not note who wrote what: there calls were made one at a time.
            for at in range(len(transaction.by), len(transaction.log)):
                begun = [part for part, made in transaction.parts.items() if made.start <= at]
                transaction.by.append(max(begun, key=lambda part: transaction.parts[part].start, default=b""))
            self._open[id] = transaction
            self._sizes[transaction.badge] += transaction.size
            for part in transaction.parts:
                self._whole[part] = id

    def _get(self, id: bytes) -> Open:
        """The transaction of an id, or of a part of it."""
        if len(id) != ID_SIZE:
            raise UnknownTransaction(f"a transaction's id has {ID_SIZE} bytes, this one {len(id)}")
        whole = self._whole.get(id, id)
        transaction = self._open.get(whole)
        if transaction is None:
            raise Aborted(
                f"transaction {id.hex()[:8]}",
                "it has ended, or the call that it was shared with has, or the store was restarted meanwhile",
            )
        if transaction.ends <= self._now():
            self._drop(whole)
            raise Aborted(
                f"transaction {id.hex()[:8]}", f"its deadline of {transaction.seconds:g} s has passed"
            )
        return transaction

    def _note_read(self, transaction: Open, key: bytes, revision: int) -> None:
        before = transaction.reads.get(key)
        agreed = self._agreed(transaction, key, before, revision)
        if before is None:
            self._grow(transaction, len(key) + _AROUND)
        transaction.reads[key] = agreed

    def _agreed(self, transaction: Open, key: bytes, before: int | None, revision: int) -> int:
        """What is noted of a key that was seen twice. Raises `Conflict`; but not where nothing is to be written: who does
        again what was committed reads rows as they were, and may expect them as he knows them to be by now."""
        if before is None or before == revision:
            return revision
        if transaction.past is not None:
            return before
        if {before, revision} == {0, NEVER}:
            return NEVER  # who found no row knows less than who says that there never was one
        raise self._history.conflict(key, revision, before)

    def _note_range(self, seen: list[Range], more: Range) -> int:
        """Bytes by which what was seen has grown. Raises `TooLarge`."""
        if not ranges.note(seen, more):
            return 0
        if len(seen) > ranges.MOST:
            raise TooLarge("an open transaction", len(seen), ranges.MOST, "ranges", IN_PARTS)
        return len(more.start) + len(more.end) + _AROUND

    def _grow(self, transaction: Open, size: int) -> None:
        """Raises `TooLarge`, or `Overloaded` where its keyspace has too much in others."""
        limit = self._history.engine.maximum_batch
        if transaction.size + size > limit:
            raise TooLarge("an open transaction", transaction.size + size, limit, do=IN_PARTS)
        if self._sizes[transaction.badge] + size > OPEN_BYTES:
            self._drop_over(self._now(), transaction)
        if self._sizes[transaction.badge] + size > OPEN_BYTES:
            raise Overloaded(f"state (bytes in open transactions of keyspace {transaction.badge})")
        transaction.size += size
        self._sizes[transaction.badge] += size

    def _shrink(self, transaction: Open, undone: list[tuple[bytes, bytes | None] | None]) -> None:
        """What was written there is given back."""
        size = _size_of([entry for entry in undone if entry is not None])
        transaction.size -= size
        self._sizes[transaction.badge] -= size


def _size_of(writes: list[tuple[bytes, bytes | None]]) -> int:
    return sum(len(key) + len(value or b"") + _AROUND for key, value in writes)


def _fitting(items: list[Item]) -> int:
    """How many of them go into a page: one at least."""
    size = 0
    for number, item in enumerate(items):
        size += len(item.key) + len(item.value or b"") + AROUND
        if size > PAGE_BYTES and number:
            return number
    return len(items)


def _key(item: Item) -> bytes:
    return item.key
