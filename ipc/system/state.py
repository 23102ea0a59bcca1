"""The store's interface: keys and values with history, transactions, and a feed of what changed.

A capability on `State` carries a keyspace as its badge; keys in calls are relative to it, and no call reaches
outside. The unbadged capability (badge 0) is the kernel's: its keys are absolute, that is `absolute(keyspace,
key)`.

Rights: `read` sees what is now, `history` what was, `write` changes, `append` adds rows and changes none, `pin` keeps a
moment from being compacted, `admin` and `backup` (unbadged only) make keyspaces, and copy the whole store. Reading in a
transaction needs `read` and `write`.

One number, the *revision*, counts committed transactions over the whole store, without gaps. Times are
nanoseconds since the epoch, and rise with the revisions; durations and deadlines are seconds.

Any method may also end with `NotAllowed`, `BadRequest` or `TooLarge` (a transaction over 16 MiB, a key over
some 490 bytes).
"""

import struct
from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream

NEVER: Final = -1
"""In place of a revision: the key was never written."""
AsOf = int | float | None
"""A revision (int), a time in seconds since the epoch (float), or now (None)."""

Only = Literal["all", "puts", "deletes"]
"""Which of what a transaction wrote a watch is told."""


class Write(Struct, array_like=True, frozen=True):
    key: bytes
    value: bytes | None = None
    """None deletes."""


class Expect(Struct, array_like=True, frozen=True, tag=0, gc=False):
    """The key's last write was at `revision`; 0: there is no such key; `NEVER`: nor was there ever one, as far as the
    keyspace keeps its past."""

    key: bytes
    revision: int


class Range(Struct, array_like=True, frozen=True, tag=1):
    """No key in start <= key < end was written or deleted after `revision`; an empty `end` is the end of the
    keyspace."""

    start: bytes
    end: bytes
    revision: int


class Item(Struct, array_like=True, frozen=True):
    """One version of one key. `value` is None where the key was deleted (only `history`, `watch` and `read`
    show that)."""

    key: bytes
    value: bytes | None
    revision: int
    time: int


class Page(Struct, array_like=True, frozen=True):
    """Part of a range. With `more`, go on after the last item; pass `revision` as `as_of` to stay in the same
    state."""

    items: list[Item]
    more: bool
    revision: int
    rest: bytes = b""
    """Where to go on, of a `scan` with `more`: what was seen and deleted in the transaction is no item."""


class Committed(Struct, array_like=True, frozen=True):
    """Durable. `repeated`: an earlier commit had this id; `reply` is what it stored, and nothing was written
    now."""

    revision: int
    time: int
    reply: bytes | None = None
    repeated: bool = False


class Provenance(Struct, array_like=True, frozen=True):
    """Who wrote a revision: keyspace of the owner by badge and name, the call (channel:request), and what it
    said of itself."""

    badge: int
    keyspace: str
    call: str
    trace: int
    time: int
    note: str
    others: tuple[str, ...] = ()
    """Keyspaces of other parties of a shared transaction."""


class Change(Struct, array_like=True, frozen=True):
    """What one transaction wrote in the keyspace.

    Without the right `history` no value that has been replaced is in it: a key that was written again since
    comes as it is now (its item's revision is then above the change's), and if that is so of all keys the
    provenance is blank."""

    revision: int
    time: int
    items: list[Item]
    provenance: Provenance
    behind: int = 0
    """To a watcher that has fallen behind, by more than 1,024 revisions: by how many, when this was read. Nothing is left
    out. Who would rather have what is now than all that was stops, reads it, and watches from there."""
    more: bool = False
    """The transaction wrote more than goes into a message: the next one goes on with it."""
    position: int = 0
    """What to watch after, to go on from here: the revision, and before its last part the one before it."""


class Retention(Struct, array_like=True, frozen=True):
    """How much of a keyspace's past is kept. With neither limit: all of it, for ever. The newest version of a key, what a
    pin holds, and what is younger than the store's `grace`, is never removed."""

    age: float | None = None
    """Seconds for which a version is kept after it was replaced: any moment that is younger can be read."""
    versions: int | None = None
    """How many versions of a key are kept at most, the newest of them."""


class Pin(Struct, array_like=True, frozen=True):
    """A moment that is kept, whatever the retention says, until the pin is dropped."""

    name: str
    revision: int
    why: str
    keyspace: str
    """Whose past it holds, and who made it; `store`: all keyspaces, and the kernel."""
    call: str
    """The call that made it (channel:request)."""
    time: int
    """When it was made, in ns."""


class Horizon(Struct, array_like=True, frozen=True):
    """How far back a keyspace can be read, and what compaction has removed of it since the store was made."""

    revision: int
    """As of this revision, and any later one, every read gives what it gave then; 0: nothing was ever removed."""
    time: int
    """When that revision was committed, in ns."""
    retention: Retention
    versions: int
    ids: int
    """Commit ids whose repetition is no longer known."""
    size: int
    """Bytes, roughly, that are free for other rows."""
    compacted: int
    """When the last compaction that removed something was recorded, in ns; 0: never."""


class Outline(Struct, array_like=True, frozen=True):
    """What a backup has to know of the store beside its rows."""

    store: bytes
    """16 random bytes that no other store has, not even one restored from a backup of this one; empty before the first
    commit."""
    boot: int
    """Of the process that wrote last."""
    head: int
    time: int
    """When `head` was committed, in ns."""
    compacted: dict[int, bytes]
    """By keyspace how far its past was given up, as the store has it written down."""


class Stretch(Struct, array_like=True, frozen=True):
    """A piece of the records of some revisions, as `servers/state` encodes them."""

    position: int
    """Nothing at or below this revision has come whole yet: a stretch that breaks off comes again from its beginning."""
    offset: int
    """Where in the encoded records the piece lies."""
    data: bytes
    more: bool
    """Whether it is not the last piece of its records."""


class Compacted(Failure):
    """The state asked for lies before what is kept."""

    revision: int
    horizon: int

    @property
    def message(self) -> str:
        return f"revision {self.revision} is no longer kept: ask for {self.horizon} or later"


class PinExists(Failure):
    """A pin of that name holds another revision."""

    name: str
    revision: int

    @property
    def message(self) -> str:
        return f"the pin {self.name!r} holds revision {self.revision}: drop it first, or choose another name"


class Ahead(Failure):
    """The state asked for is not there (yet): a revision in the future, or after a restore from an older
    backup."""

    revision: int
    head: int

    @property
    def message(self) -> str:
        return f"revision {self.revision} lies ahead of the store, at {self.head}: ask for that or less"


class StoreFull(Failure):
    """Nothing was written. Reads go on."""

    what: str
    used: int
    limit: int

    @property
    def message(self) -> str:
        return (
            f"{self.what}: {self.used} of {self.limit} bytes are taken; nothing was written. "
            "Free space on the disk or raise the store's limit in the image"
        )


class UnknownTransaction(Failure):
    """The id is none that `begin` gives, or the transaction is not the caller's to end."""

    reason: str

    @property
    def message(self) -> str:
        return f"{self.reason}: use the id that `begin` returned, and let its owner finish or abort it"


class State(Interface):
    errors = (Compacted, Ahead, StoreFull, UnknownTransaction, PinExists)

    @call("write", idempotent=True)
    def commit(
        self,
        writes: list[Write],
        expects: list[Expect | Range] = [],  # noqa: B006 (the wire's default; never changed)
        id: bytes = b"",
        reply: bytes = b"",
        note: str = "",
        transaction: bytes = b"",
    ) -> Committed:
        """Writes all or nothing; returns when it is durable, together with whatever else arrived meanwhile.

        With an `id` (64 bytes at most) a repeated commit writes nothing and returns the first one's revision
        and `reply` (who has no right `read` is told only his own): for ever in a keyspace without retention, else for the
        store's `remember`, a day if the image says nothing. Without one a repetition after a crash may write the same
        values again under a new revision, which `expects` can rule out. With a `transaction` nothing is written yet:
        writes and expectations join it, and `revision` is 0. Raises `Conflict`, `StoreFull`, `Aborted`.
        """

    @call("read", idempotent=True)
    def get(self, key: bytes, as_of: AsOf = None, least: int = 0) -> Item | None:
        """The key's value, or None. The past needs the right `history`. `least`: the reader must have this
        revision (`Ahead`)."""

    @call("read", idempotent=True)
    def range(
        self,
        start: bytes,
        end: bytes = b"",
        limit: int = 1000,
        as_of: AsOf = None,
        reverse: bool = False,
        least: int = 0,
    ) -> Page:
        """Keys in start <= key < end in order; an empty `end` is the end of the keyspace. At most `limit`
        items and 512 KiB."""

    @call("history", idempotent=True)
    def history(self, key: bytes, limit: int = 100, least: int = 0) -> list[Item]:
        """The key's versions that are kept, newest first, deletions among them. Below the horizon there may be gaps.
        `least` as in `get`."""

    @stream("read", position=int)
    def watch(self, after: int, prefix: bytes = b"", only: Only = "all") -> Change:
        """Every transaction after that revision that wrote a key with the prefix, in order, without a gap;
        then those to come. What they wrote over the past needs the right `history` (see `Change`). With `only`, keys that
        are shown with a value, or as deleted, and transactions that have such. It may be slow: it is told so
        (`Change.behind`), keeps nobody waiting, and goes on where it was."""

    @stream("history", position=int)
    def changes(self, after: int, upto: int, prefix: bytes = b"") -> Change:
        """Every transaction after one revision, up to another, that wrote a key with the prefix, in order; then it ends."""

    @call("read", idempotent=True)
    def head(self) -> int:
        """The last durable revision of the store."""

    @call("history", idempotent=True)
    def revision_at(self, time: float) -> int:
        """The last revision at or before a time (seconds since the epoch); 0 before the first. Where what followed
        wrote nothing in the keyspace, a later one may stand for it: reads as of either are the same."""

    @call("history", idempotent=True)
    def who(self, revision: int) -> Provenance | None:
        """Who wrote a revision; None if it wrote nothing in the caller's keyspace."""

    @call("write")
    def begin(self, deadline: float, id: bytes = b"", transaction: bytes = b"") -> bytes:
        """Opens a transaction: 16 random bytes that are the right to take part in it. It ends as aborted
        after `deadline` seconds. `id`: what `finish` will be given; if that was committed before, reads are of the state
        before it, so that whoever does the same again decides the same; without the right `history` only if that was within
        the last hour. `transaction`: those bytes, drawn by the caller, who
        can then `abort` it also if the reply does not come; one that the caller has open already is no error."""

    @call("write", idempotent=True)
    def read(self, transaction: bytes, key: bytes) -> Item | None:
        """The key as the transaction sees it: its own write, else the state at `begin`; joins the read
        set. Needs the right `read` too."""

    @call("write", idempotent=True)
    def scan(self, transaction: bytes, start: bytes, end: bytes = b"", limit: int = 1000) -> Page:
        """A range as the transaction sees it; the whole range that was seen joins the read set, so nothing
        may appear in it. Needs the right `read` too."""

    @call("write", idempotent=True)
    def savepoint(self, transaction: bytes) -> int:
        """A mark to which `undo` can return."""

    @call("write", idempotent=True)
    def undo(self, transaction: bytes, savepoint: int) -> None:
        """Forgets what was written since the savepoint. What was read stays in the read set: a decision may
        rest on it. In a part, only what was written since it began."""

    @call("write")
    def share(self, transaction: bytes) -> bytes:
        """A part of the transaction, for one call of another server: 16 random bytes, with which the callee reads
        and writes in it until the part is ended by whoever made it. A part can be shared further."""

    @call("write", idempotent=True)
    def join(self, part: bytes) -> None:
        """Ends a part: what was written in it stays with the transaction."""

    @call("write", idempotent=True)
    def retract(self, part: bytes) -> None:
        """Ends a part and forgets what was written since it began. What is still sent with its id gets
        `Aborted`."""

    @call("write", idempotent=True)
    def finish(self, transaction: bytes, reply: bytes = b"", note: str = "", id: bytes = b"") -> Committed:
        """Commits, if nothing that was read has changed since (`Conflict`). Owner only; may be repeated, also
        after a crash. `id` as of `commit`: a transaction of an id that was committed before writes nothing. One that has
        only read commits nothing, and never conflicts: it was as it saw it when it began."""

    @call("write", idempotent=True)
    def abort(self, transaction: bytes) -> None:
        """Ends the transaction with nothing written. Owner only; a transaction that has ended already is no
        error."""

    @call("pin", idempotent=True)
    def pin(self, name: str, revision: int = 0, why: str = "") -> Pin:
        """Keeps the keyspace as it was at a revision (0: as it is now) until `unpin`; the unbadged capability keeps all
        keyspaces. Repeated, it gives the pin that is there. Raises `PinExists`, `Compacted`, `Ahead`, and
        `QuotaExceeded` where the keyspace has too many."""

    @call("pin", idempotent=True)
    def unpin(self, name: str) -> None:
        """Drops a pin. What it alone kept is removed in time. A pin that is not there is no error."""

    @call("history", idempotent=True)
    def pins(self, as_of: AsOf = None) -> list[Pin]:
        """The pins that keep something of the keyspace, those on the whole store among them; as of a moment those that did
        then. Raises `Compacted` where it is not known any more."""

    @call("read", idempotent=True)
    def horizon(self) -> Horizon:
        """How far back the keyspace can be read; of the unbadged capability, what holds for the store's own rows."""

    @call("admin", idempotent=True)
    def make_keyspace(
        self,
        name: str,
        retention: Retention = Retention(),  # noqa: B008 (frozen)
        reserved: bool = False,
    ) -> int:
        """The badge of the keyspace of that name, made if need be; one that is there has that retention from now on.
        `reserved`: its writes may use the kernel's reserve of space."""

    @call("admin", idempotent=True)
    def keyspaces(self) -> dict[str, int]:
        """Names and badges of all keyspaces."""

    @call("backup", idempotent=True)
    def outline(self) -> Outline:
        """What the store is, how far it reaches, and what it has given up."""

    @stream("backup", position=int, service="bulk")
    def export(self, upto: int, down_to: int = 0, keyspaces: list[int] = []) -> Stretch:  # noqa: B006 (never changed)
        """All that is kept of the revisions above `down_to` up to `upto`, the newest first; with `keyspaces` only what
        lies in those. Newest first, since compaction goes on: a version that comes was not replaced by one that has gone
        unseen."""

    @call("read", idempotent=True)
    def statistics(self) -> dict[str, int]:
        """Figures of the store: bytes used, limit, groups, commits, group size, readers, watchers, open
        transactions; `reads`: calls that this process served and a reader could have."""

    # Last: rights have their bits in the order in which they first appear.
    @call("append", idempotent=True)
    def append(
        self,
        writes: list[Write],
        id: bytes = b"",
        reply: bytes = b"",
        note: str = "",
        transaction: bytes = b"",
    ) -> Committed:
        """`commit` for whoever may add rows and change none: each key is one that was never written, and has a value.
        Rows that are all there already, with these very values, are no error, and nothing is written.

        Raises `NotAllowed` where another row is there (`Conflict` for a holder of the right `write`, and at the end of a
        transaction if somebody else wrote it meanwhile), else as `commit`.
        """


VERSIONS_MOST: Final = 10_000
"""Versions of a key that the store tells in one call."""


def versions_upto(history: Callable[[int], list[Item]], limit: int, revision: int) -> list[Item] | None:
    """The last versions of a key up to a revision, newest first; None: more have come since than the store tells of.

    `history`: the newest ones that there are, at most so many. More is asked for until those that came later are behind."""
    asked = limit
    while True:
        found = history(asked)
        kept = [item for item in found if item.revision <= revision]
        if len(kept) >= limit or len(found) < asked:
            return kept[:limit]
        if asked >= VERSIONS_MOST:
            return None
        asked = min(asked * 4, VERSIONS_MOST)


_keyspace = struct.Struct(">I")


def absolute(keyspace: int, key: bytes) -> bytes:
    """A keyspace's key as the unbadged capability names it."""
    return _keyspace.pack(keyspace) + key


def relative(key: bytes) -> tuple[int, bytes]:
    """Keyspace and key of an absolute key."""
    return int(_keyspace.unpack_from(key)[0]), key[_keyspace.size :]
