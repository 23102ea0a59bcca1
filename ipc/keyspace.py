"""Typed rows over the store, as a server's author has them: `rows: Keyspace[int]`.

Three ways to use it, from the plainest:

- `rows.local` reads memory, and `rows.put`, `delete`, `update` return Deferreds: made for plain handlers.
  They join the group commit.
- `await rows.get(...)`, `range`, `history`, `as_of`, `watch` ask the store: made for async handlers and for
  keyspaces too large for memory.
- `async with rows.transaction() as tx` reads and writes several keys at once, and may take other servers in
  (`tx.share`).

What a handler writes while a call is in hand is committed under an id made of the boot, the channel, the
badge and the call's request number, with the reply stored beside it. A call that is delivered again after a
crash therefore finds its first outcome, and gets the stored reply instead of taking effect twice. A call
under a transaction writes into that transaction, and is committed by its owner.

`follow` keeps the local view; whoever binds a server's needs runs it after the server's `start()` and before
its first call. A server whose keyspace is not to be held in memory says `self.rows.keep_remote()` in
`start()`; one that reads `local` in `start()` awaits `self.rows.load()` first.
"""

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Final, Generic, TypeVar

import trio
from msgspec import Struct

from . import chance
from .context import Call, back_in_hand, current_or_none
from .deferred import Deferred
from .errors import BadRequest, Conflict, Purged
from .following import Following
from .form import Draft, Form, NotReady
from .future import Future, wait_for
from .local_view import RESERVED, LocalView, after_prefix, decode_key, encode_key
from .origin import Origin, Origins
from .participation import Part, part_of, when
from .system.state import AsOf, Committed, Expect, Item, Only, State, Write
from .transaction import PAGE, Transaction, open_transaction, retried
from .turns import Turns
from .whole_changes import whole

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS: Final = 32
"""Tries of one `update` against others' writes before its `Conflict` is the caller's."""
AHEAD: Final = 16
"""Reads of several rows that are under way at a time."""


class Row(Struct, Generic[T], frozen=True):
    """One version of one key. `time` in ns since the epoch; `value` is None for a deletion, which only
    histories show, and where whom it is about was purged."""

    key: str
    value: T | None
    revision: int
    time: int
    purged: bool = False


class RowChange(Struct, Generic[T], frozen=True):
    """What one transaction wrote."""

    revision: int
    time: int
    rows: list[Row[T]]
    note: str
    call: str
    behind: int = 0
    """To a watcher that has fallen behind: by how many of the store's revisions. Nothing is left out."""


async def settled(deferred: Deferred[R]) -> R:
    """Awaits a Deferred: `await settled(rows.put("k", v))` in an async handler."""
    await wait_for(lambda callback: deferred.react(lambda _: callback(), lambda _: callback()))
    return deferred.result()


def _part(call: Call | None) -> Part | None:
    """The share of the call in hand in a transaction, if it takes part in one."""
    return None if call is None or call.transaction is None else part_of(call)


class Keyspace(Generic[T]):
    """Rows of type T by key. Keys are `str` or `bytes`; they come back as `str`."""

    __atoll_need__: ClassVar[str] = "keyspace"

    def __init__(
        self,
        state: State,
        kind: Any,
        *,
        boot: int = 0,
        prefix: bytes = b"",
        form: Form[T] | None = None,
        view: LocalView[T] | None = None,
    ) -> None:
        """`kind` is T; `boot` makes the ids of calls unique over boots; `prefix` narrows it to keys that
        begin so; `form`: how values are written, where not plainly; `view` becomes the local view."""
        self.state = state
        self._prefix = prefix
        self._origins = Origins(boot)
        self._form: Form[T] = Form(kind) if form is None else form
        self._following: Following[T] = Following(prefix, self._form, LocalView() if view is None else view)
        self._remote = False
        self._turns = Turns()
        """Of updates: by the transaction that they take part in, and the key."""

    # in memory

    @property
    def boot(self) -> int:
        """The boot of the node; channels and requests are numbered anew in each."""
        return self._origins.boot

    @property
    def followed(self) -> bool:
        """Whether there is a local view."""
        return self._following.loaded

    @property
    def local(self) -> LocalView[T]:
        """The keyspace in memory, complete up to `local.revision`. RuntimeError if it is not followed."""
        if not self._following.loaded:
            reason = (
                "keep_remote() was called"
                if self._remote
                else "it is loaded after start(); await load() to have it before"
            )
            raise RuntimeError(
                f"the keyspace has no local view: {reason}; read it with `await rows.get(key)`"
            )
        return self._following.view

    def keep_remote(self) -> None:
        """No local view of this keyspace: it is large, or never read in plain handlers."""
        self._remote = True

    async def follow(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Loads the local view, says so by `task_status`, and keeps it until cancelled; the store may restart
        meanwhile."""
        if self._remote:
            task_status.started()
            return
        await self._following.follow(self.state, task_status=task_status)

    async def load(self) -> None:
        """Fills the local view as the store is now; `follow` keeps it. For a `start()` that wants to read
        it."""
        await self._following.load(self.state)

    def forget(self) -> None:
        """Begin the local view anew, with nothing in it: `load` fills it."""
        self._following.forget()

    def apply(self, item: Item) -> None:
        """Bring one row into the local view."""
        self._following.apply(item)

    # writing

    def put(self, key: str | bytes, value: T) -> Deferred[int]:
        """Writes; gives the revision when it is durable (0 under a transaction: it is durable with that)."""
        return self._commit([(key, value, True)])

    def delete(self, key: str | bytes) -> Deferred[int]:
        """Deletes; gives the revision when it is durable. A key that is not there is no error."""
        return self._commit([(key, None, False)])

    def put_all(self, rows: dict[str, T]) -> Deferred[int]:
        """Writes all or none of the rows, in one transaction."""
        return self._commit([(key, value, True) for key, value in rows.items()])

    def append(self, key: str | bytes, value: T) -> Deferred[int]:
        """Writes a row under a key that was never written; gives the revision. For holders of the right `append`, who may do
        no more, and of course for all who may write. That very row again is no error. Raises `NotAllowed` where there is, or
        was, another one (`Conflict` with the right `write`)."""
        return self._commit([(key, value, True)], new=True)

    def update(self, key: str | bytes, change: Callable[[T | None], T]) -> Deferred[T]:
        """Replaces a value by `change` of it (None where there is none) and gives the new one when it is
        durable.

        `change` is called again when somebody else wrote the key meanwhile, so it must do nothing but
        compute. If it raises, nothing is written. When the call in hand was served before, gives what was
        given then.
        """
        done: Deferred[T] = Deferred()
        call = current_or_none()
        raw = self._prefix + encode_key(key)
        part = _part(call)
        origin = self._origins.of(call, raw) if part is None else Origin()

        def begin() -> None:
            if part is None:
                self._attempt(raw, change, origin, ATTEMPTS, done)
            else:
                self._update_under(part, raw, change, done)

        self._turns.take([(part, raw)], begin, done)
        return done

    def _attempt(
        self, raw: bytes, change: Callable[[T | None], T], origin: Origin, left: int, done: Deferred[T]
    ) -> None:
        if self.followed and left == ATTEMPTS:
            self._replace(raw, lambda: self._following.find(raw), change, origin, left, done)
            return

        call = current_or_none()

        def found(item: Item | None) -> None:
            packed = None if item is None else item.value

            def old() -> tuple[T | None, int]:
                if item is None or packed is None:
                    return None, 0
                return self._form.read(raw, packed), item.revision

            before = () if packed is None else (packed,)
            with back_in_hand(call):
                self._form.before(
                    (), before, lambda: self._replace(raw, old, change, origin, left, done), done.fail
                )

        when(lambda: self.state.get.start(raw), found, done.fail)

    def _replace(
        self,
        raw: bytes,
        old: Callable[[], tuple[T | None, int]],
        change: Callable[[T | None], T],
        origin: Origin,
        left: int,
        done: Deferred[T],
    ) -> None:
        try:
            before, revision = old()
            value = change(before)
            draft = self._form.draft(value)
        except Exception as error:
            done.fail(error)
            return
        call = current_or_none()

        def committed(outcome: Committed) -> None:
            if outcome.repeated and origin.id:
                self._again(origin, outcome, lambda reply: self._given(raw, reply, done), done.fail)
                return
            self._following.wrote(raw, draft, outcome.revision)
            done.complete(value)

        def failed(error: Exception) -> None:
            if isinstance(error, Conflict) and left > 1:
                with back_in_hand(call):
                    self._attempt(raw, change, origin, left - 1, done)
            else:
                done.fail(error)

        def write() -> None:
            packed = self._form.written(raw, draft)
            # The stored reply is only looked at when there is an id to find it by.
            reply = origin.mark + packed if origin.id else b""
            # Of nobody's call, too: sent again to a store that died over it, it would be in conflict with itself.
            writes, own = [Write(raw, packed)], (origin.id or chance.token(16), reply, origin.note)
            when(lambda: self.state.commit.start(writes, [Expect(raw, revision)], *own), committed, failed)

        self._form.before((draft,), (), write, done.fail)

    def _given(self, raw: bytes, reply: bytes, done: Deferred[T]) -> None:
        """Answer a repeated delivery with the reply of the first."""

        def give() -> None:
            try:
                value = self._form.read(raw, reply)
            except Exception as error:
                done.fail(error)
            else:
                done.complete(value)

        self._form.before((), (reply,), give, done.fail)

    def _update_under(
        self, part: Part, raw: bytes, change: Callable[[T | None], T], done: Deferred[T]
    ) -> None:
        def found(item: Item | None) -> None:
            packed = None if item is None else item.value
            before = () if packed is None else (packed,)
            self._form.before((), before, lambda: replace(packed), done.fail)

        def replace(packed: bytes | None) -> None:
            try:
                value = change(None if packed is None else self._form.read(raw, packed))
                draft = self._form.draft(value)
            except Exception as error:
                done.fail(error)
                return

            def write() -> None:
                writes = [Write(raw, self._form.written(raw, draft))]
                joining = part.write(self.state, writes, self._seen([(raw, draft)]))
                joining.react(lambda _: done.complete(value), done.fail)

            self._form.before((draft,), (), write, done.fail)

        part.read(self.state, raw).react(found, done.fail)

    def _commit(self, rows: list[tuple[str | bytes, T | None, bool]], *, new: bool = False) -> Deferred[int]:
        done: Deferred[int] = Deferred()
        call = current_or_none()
        form = self._form
        drafts = [
            (self._prefix + encode_key(key), form.draft(value) if present else None)  # type: ignore[arg-type]
            for key, value, present in rows
        ]
        seen = self._seen(drafts)
        part = _part(call)
        # Numbered here, in the order in which the handler writes, whichever of its writes waits for its data key.
        origin = Origin() if part is not None else self._origins.of(call, *(raw for raw, _ in drafts))

        def written() -> list[Write]:
            return [Write(raw, None if draft is None else form.written(raw, draft)) for raw, draft in drafts]

        def committed(outcome: Committed) -> None:
            if outcome.repeated:
                self._again(origin, outcome, lambda _: done.complete(outcome.revision), done.fail)
                return
            seen(outcome.revision)
            done.complete(outcome.revision)

        def write() -> None:
            writes, own = written(), (origin.id, origin.mark, origin.note)
            if part is not None:
                joining = part.write(self.state, writes, seen, new=new)
                joining.react(lambda _: done.complete(0), done.fail)
            elif new:
                when(lambda: self.state.append.start(writes, *own), committed, done.fail)
            else:
                when(lambda: self.state.commit.start(writes, [], *own), committed, done.fail)

        def begin() -> None:
            try:
                form.before((draft for _, draft in drafts if draft is not None), (), write, done.fail)
            except Exception as error:  # whoever's turn is over may stand above
                done.fail(error)

        if part is None and not form.waits:
            begin()
        else:
            # Behind updates of these rows: what they read would not be what they replace. Without a transaction it is at
            # their commit that they find it out. And behind writes of these rows that wait for a key, as this one may not.
            self._turns.take([(part, raw) for raw, _ in drafts], begin, done)
        return done

    def _seen(self, drafts: list[tuple[bytes, Draft | None]]) -> Callable[[int], None]:
        """What brings own writes into the view, once they are committed at a revision."""

        def seen(revision: int) -> None:
            for raw, draft in drafts:
                self._following.wrote(raw, draft, revision)

        return seen

    def _again(
        self,
        origin: Origin,
        outcome: Committed,
        answer: Callable[[bytes], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Answer a repeated delivery, with what was stored for the earlier one, when the view has come as far as what that
        committed. What that was, only the feed says: a handler need not make the same of a call twice."""
        try:
            stored = origin.stored(outcome.reply)
        except BadRequest as error:
            failed(error)
            return
        self._following.once_at(outcome.revision, lambda: answer(stored))

    # asking the store

    async def get(self, key: str | bytes, *, as_of: AsOf = None) -> T | None:
        """The value, or None. `as_of`: a revision, or a time in seconds since the epoch; the past needs the
        right `history`.

        Under a transaction (of the call in hand) what it sees, and what it must still see when it is
        committed."""
        row = await self.row(key, as_of=as_of)
        if row is not None and row.purged:
            raise Purged(f"whom the row {row.key!r} is about")
        return None if row is None else row.value

    async def row(self, key: str | bytes, *, as_of: AsOf = None) -> Row[T] | None:
        """The value with its revision and time, or None."""
        raw = self._prefix + encode_key(key)
        part = _part(current_or_none()) if as_of is None else None
        if part is None:
            item = await self.state.get(raw, as_of)
        else:
            item = await settled(part.read(self.state, raw))
        return await self._row_of(item)

    async def rows_at(self, keys: Iterable[str | bytes], *, as_of: int | float) -> list[Row[T] | None]:
        """`row` of each key, all as of one moment; they are asked for together, not each after the one before."""
        found: list[Row[T] | None] = []
        asked: deque[Future[Item | None]] = deque()
        for key in keys:
            if len(asked) == AHEAD:
                found.append(await self._row_of(await asked.popleft()))
            asked.append(self.state.get.start(self._prefix + encode_key(key), as_of))
        return found + [await self._row_of(await each) for each in asked]

    async def range(
        self,
        start: str | bytes = b"",
        end: str | bytes | None = None,
        *,
        limit: int | None = None,
        as_of: AsOf = None,
        reverse: bool = False,
    ) -> AsyncIterator[Row[T]]:
        """Rows with start <= key < end, in the order of their keys' bytes; `end` None: to the end of the
        keyspace.

        Long ranges come in pages; only with `as_of` are all pages of one state. Under a transaction (of the call in hand)
        what it sees, its own writes included (at revision 0), and nothing may have appeared in what was seen when it is
        committed; `reverse` is refused there."""
        first = self._prefix + encode_key(start)
        last = after_prefix(self._prefix) if end is None else self._prefix + encode_key(end)
        part = _part(current_or_none()) if as_of is None else None
        if part is not None and reverse:
            raise BadRequest("a range under a transaction", "one in the order of its keys", "one in reverse")
        left = math.inf if limit is None else limit
        while left > 0:
            size = int(min(left, PAGE))
            if part is None:
                page = await self.state.range(first, last, size, as_of, reverse)
            else:
                page = await part.scan(self.state, first, last, size)
            # A transaction's own rows come on top of a page's.
            for row in await self._rows(page.items[: int(min(left, len(page.items)))]):
                yield row
            if not page.more:
                return
            # A time may stand for a later revision by then, where it is not over yet, or a reader process is behind.
            as_of = page.revision if isinstance(as_of, float) else as_of
            left -= len(page.items)
            if reverse:
                last = page.items[-1].key
            else:
                first = page.rest or page.items[-1].key + b"\0"

    async def history(self, key: str | bytes, limit: int = 100) -> list[Row[T]]:
        """The key's versions, newest first, deletions (value None) among them."""
        return await self._rows(await self.state.history(self._prefix + encode_key(key), limit))

    def as_of(self, moment: int | float) -> "Past[T]":
        """The keyspace as it was: `await rows.as_of(17).get("k")`."""
        return Past(self, moment)

    async def watch(self, after: int, *, only: Only = "all") -> AsyncIterator[RowChange[T]]:
        """Every transaction after a revision that wrote here, in order, without a gap; then those to come.
        Without the right `history` a row that was written again since comes as it is now. `only`: rows with a value, or
        deletions."""
        async with self.state.watch(after, self._prefix, only) as parts:  # it is left wherever this is
            async for change in whole(parts):
                rows = await self._rows([item for item in change.items if item.key < RESERVED])
                if rows:
                    told = change.provenance
                    yield RowChange(change.revision, change.time, rows, told.note, told.call, change.behind)

    def transaction(self, *, deadline: float = 10.0) -> AbstractAsyncContextManager[Transaction[T]]:
        """Reads and writes of one moment; committed at the end of the block, given up if it raises. Under a
        transaction (of the call in hand) a part of that: joined or undone at the end, committed by its owner.

        Raises `Conflict` at the end if something that was read has changed since; `retry` tries again by
        itself."""
        return open_transaction(self.state, self._form, self._prefix, deadline, self._origins)

    async def retry(
        self, body: Callable[[Transaction[T]], Any], *, attempts: int = 10, deadline: float = 10.0
    ) -> Any:
        """Runs an async `body(tx)` in a transaction until it commits, with jittered pauses; gives what the
        body gave.

        Raises the last `Conflict` or `Aborted` after that many attempts, and whatever else the body raises at
        once."""
        call = current_or_none()
        source = random.Random(chance.token(16)) if call is None else call.random
        return await retried(lambda: self.transaction(deadline=deadline), body, attempts, source)

    async def _row_of(self, item: Item | None) -> Row[T] | None:
        return None if item is None or item.value is None else (await self._rows([item]))[0]

    async def _rows(self, items: list[Item]) -> list[Row[T]]:
        try:
            # As a rule nothing is missing, and to look for it costs as much as a third of reading it.
            return [self._row(item) for item in items]
        except NotReady:
            await self._form.ready(packed=(item.value for item in items if item.value is not None))
            return [self._row(item) for item in items]

    def _row(self, item: Item) -> Row[T]:
        key, value = decode_key(item.key[len(self._prefix) :]), None
        if item.value is not None:
            try:
                value = self._form.read(item.key, item.value)
            except Purged:
                return Row(key, None, item.revision, item.time, purged=True)
        return Row(key, value, item.revision, item.time)


class Past(Generic[T]):
    """A keyspace as of a moment."""

    def __init__(self, keyspace: Keyspace[T], moment: int | float) -> None:
        self._keyspace = keyspace
        self._moment = moment

    async def get(self, key: str | bytes) -> T | None:
        return await self._keyspace.get(key, as_of=self._moment)

    def range(
        self,
        start: str | bytes = b"",
        end: str | bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[Row[T]]:
        return self._keyspace.range(start, end, limit=limit, as_of=self._moment, reverse=reverse)
