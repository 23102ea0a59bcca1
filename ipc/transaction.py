"""A transaction as its owner has it: `async with rows.transaction() as tx`.

Reads are of the state when it began; what was read must still be so when it is committed, at the end of the
block. Writes are kept here and told to the store when somebody else must see them: before a shared call, at a
savepoint, at the end.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec
import trio

from .bound import bind, options_of, transport_of
from .context import current_or_none, in_hand, inherited
from .errors import (
    Aborted,
    AtollError,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    InternalFault,
    NodeDown,
    Overloaded,
    PeerDied,
    PeerMisbehaved,
    QuotaExceeded,
)
from .form import Draft, Form
from .future import Payload, RawReply
from .interface import Interface
from .local_view import after_prefix, decode_key, encode_key
from .method import MethodSpec
from .origin import Origins, Taken
from .participation import Part, abandon, new_transaction, part_of
from .system.state import Expect, Item, Range, State, Write
from .transport import ChannelStatistics, Options, RawStream, Translator, Transport

T = TypeVar("T")
U = TypeVar("U")
I = TypeVar("I", bound=Interface)  # noqa: E741

PAGE: Final = 1000
"""Rows that are asked for in one go."""
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.25
_RETRACTED_WITHIN: Final = 10.0
"""Seconds in which a part is to be undone: a transaction whose owner says nothing else lasts no longer."""
_IN_DOUBT: Final = (DeadlineExceeded, PeerDied, PeerMisbehaved, NodeDown, InternalFault)
"""Errors of a commit that may have been made all the same."""


class Held(Protocol[U]):
    """A keyspace as its holder has it."""

    state: State
    _form: Form[U]
    _prefix: bytes


class _Writes:
    """What was written in one keyspace, by whichever face, and the store was not told."""

    def __init__(self, state: State) -> None:
        self.pending: dict[bytes, tuple[Form[Any], Draft | None]] = {}
        self.new: set[bytes] = set()
        """Of those, the keys that must never have been written."""
        self.expects: list[Expect | Range] = []
        """What is taken for read. Like what was read, nothing that is undone takes it back."""
        self._state = state

    @property
    def all_told(self) -> bool:
        return not self.pending and not self.expects

    def drop(self) -> None:
        self.pending.clear()
        self.new.clear()

    async def tell(self, id: bytes) -> None:
        """Tell the store what is pending now. What is written meanwhile stays to be told, over rows that are new no more."""
        pending, never = dict(self.pending), self.new
        self.new = set()
        try:
            await self._tell(id, pending, never)
        except BaseException:
            self.new |= {raw for raw in never if self.pending[raw][1] is not None}
            raise

    async def _tell(
        self, id: bytes, pending: dict[bytes, tuple[Form[Any], Draft | None]], never: set[bytes]
    ) -> None:
        writes, expects = list[Write](), list(self.expects)
        for form in dict.fromkeys(form for form, _ in pending.values()):
            drafts = {key: draft for key, (its, draft) in pending.items() if its is form}
            await form.ready(draft for draft in drafts.values() if draft is not None)
            writes += [
                Write(key, None if draft is None else form.written(key, draft))
                for key, draft in drafts.items()
            ]
        new = [write for write in writes if write.key in never]
        changed = [write for write in writes if write.key not in never]
        if changed or expects:
            await self._state.commit(changed, expects, transaction=id)
            del self.expects[: len(expects)]
            self._told(changed, pending)
        if new:
            # Told twice it would meet itself: whoever is cancelled meanwhile, whether it was told must be known.
            with trio.CancelScope(shield=True):
                await self._state.append(new, transaction=id)
            self._told(new, pending)

    def _told(self, writes: list[Write], pending: dict[bytes, tuple[Form[Any], Draft | None]]) -> None:
        for write in writes:
            if self.pending[write.key] is pending[write.key]:
                del self.pending[write.key]


class _Untold:
    """What all faces of one transaction share: what the store was not told, by the capability that it goes by."""

    def __init__(self) -> None:
        self.telling = trio.Lock()
        """Tasks of one transaction may be beside each other: what is written twice must arrive in that order, and what is
        undone not after it was undone."""
        self.over = False
        self._writes: dict[State, _Writes] = {}

    def by(self, state: State) -> _Writes:
        return self._writes.setdefault(state, _Writes(state))

    async def tell(self, id: bytes) -> None:
        async with self.telling:
            for writes in list(self._writes.values()):
                await writes.tell(id)

    async def undo(self, state: State, id: bytes, savepoint: int) -> None:
        async with self.telling:
            for writes in self._writes.values():
                writes.drop()
            await state.undo(id, savepoint)

    async def end(self, id: bytes) -> None:
        """Tell all, and take no more."""
        while not all(writes.all_told for writes in self._writes.values()):
            await self.tell(id)
        self.over = True


class Transaction(Generic[T]):
    """Of one keyspace; others take part by `share`, or through `on` where this process holds their keyspace
    too. Tasks of its owner may use it beside each other."""

    def __init__(
        self, state: State, id: bytes, form: Form[T], prefix: bytes, untold: "_Untold | None" = None
    ) -> None:
        self.state = state
        self.id = id
        """The right to take part: whoever has it may write into this transaction."""
        self.revision: int | None = None
        """Of the commit, once it is durable."""
        self._form = form
        self._prefix = prefix
        self._untold = untold or _Untold()
        self._writes = self._untold.by(state)

    async def get(self, key: str | bytes) -> T | None:
        """The value as this transaction sees it, its own writes included."""
        raw = self._prefix + encode_key(key)
        if raw in self._writes.pending:
            _, draft = self._writes.pending[raw]
            return None if draft is None else self._form.meant(draft)
        item = await self.state.read(self.id, raw)
        if item is None or item.value is None:
            return None
        await self._form.ready(packed=(item.value,))
        return self._form.read(raw, item.value)

    async def range(
        self, start: str | bytes = b"", end: str | bytes = b"", limit: int = 1000
    ) -> list[tuple[str, T]]:
        """Keys and values in start <= key < end (empty: to the end), `limit` at most; nothing may appear
        among them until the end. Raises `Purged` where one cannot be read any more."""
        await self._untold.tell(self.id)
        last = self._prefix + encode_key(end) if end else after_prefix(self._prefix)
        here, items = self._prefix + encode_key(start), list[Item]()
        while len(items) < limit:
            page = await self.state.scan(self.id, here, last, min(PAGE, limit - len(items)))
            items += page.items
            if not page.more:
                break
            here = page.rest
        await self._form.ready(packed=(item.value for item in items if item.value is not None))
        return [
            (decode_key(item.key[len(self._prefix) :]), self._form.read(item.key, item.value))
            for item in items[:limit]  # its own rows come on top of a page's
            if item.value is not None and item.key.startswith(self._prefix)
        ]

    def expect(self, key: str | bytes, revision: int) -> None:
        """Takes a row for read that is known from elsewhere, a local view (`LocalView.revision_of`) say, without asking the
        store: its last write must be at `revision` when this is committed; 0: there must be no such row. `Conflict` at the
        end where that is not so. Who tries again has to ask: what was known may be behind for a while."""
        self._refuse_late()
        self._writes.expects.append(Expect(self._prefix + encode_key(key), revision))

    def put(self, key: str | bytes, value: T) -> None:
        self._write(self._prefix + encode_key(key), self._form.draft(value))

    def delete(self, key: str | bytes) -> None:
        raw = self._prefix + encode_key(key)
        self._write(raw, None)
        self._writes.new.discard(raw)

    def _write(self, raw: bytes, draft: Draft | None) -> None:
        self._refuse_late()
        self._writes.pending[raw] = self._form, draft

    def _refuse_late(self) -> None:
        if self._untold.over:
            raise BadRequest("a write in a transaction", "one before the end of its block", "one after it")

    def append(self, key: str | bytes, value: T) -> None:
        """Writes a row under a key that was never written, see `Keyspace.append`; `Conflict` at the end where it was."""
        self.put(key, value)
        self._writes.new.add(self._prefix + encode_key(key))

    def on(self, keyspace: "Held[U]") -> "Transaction[U]":
        """The same transaction, in another keyspace of this process's: what is written there is committed with it."""
        return Transaction(keyspace.state, self.id, keyspace._form, keyspace._prefix, self._untold)

    async def savepoint(self) -> int:
        """A mark for `undo`."""
        await self._untold.tell(self.id)
        return await self.state.savepoint(self.id)

    async def undo(self, savepoint: int) -> None:
        """Forgets what was written since, by whomever. What was read must still be so at the end."""
        await self._untold.undo(self.state, self.id, savepoint)

    def share(self, proxy: I) -> I:
        """The proxy with calls that take part: each is a savepoint, which joins when its reply is in and is
        undone if none comes; what the server writes after that is refused.

        Only awaited calls, one at a time: a call's writes could not be told from another's that runs beside
        it."""
        return shared(self, proxy)

    async def part(self) -> bytes:
        """The right to take part for as long as one call lasts; `join` or `retract` at the store ends it."""
        await self._untold.tell(self.id)
        return await self.state.share(self.id)

    async def _finish(self, taken: Taken) -> None:
        await self._untold.end(self.id)
        taken.in_doubt = True
        try:
            self.revision = (await self.state.finish(self.id, id=taken.id)).revision
        except AtollError as error:
            taken.in_doubt = isinstance(error, _IN_DOUBT)
            raise


@asynccontextmanager
async def _opened(
    state: State, form: Form[T], prefix: bytes, deadline: float, origins: Origins
) -> AsyncIterator[Transaction[T]]:
    with origins.transaction(current_or_none()) as taken:
        transaction = Transaction(state, new_transaction(), form, prefix)
        try:
            transaction.id = await state.begin(deadline, taken.id, transaction.id)
            yield transaction
            await transaction._finish(taken)
        except BaseException:
            # Also when cancelled: what is not aborted would hold its place until the deadline.
            abandon(state, transaction.id)
            raise


@asynccontextmanager
async def _within(state: State, form: Form[T], prefix: bytes, part: Part) -> AsyncIterator[Transaction[T]]:
    transaction = Transaction(state, await state.share(await part.whole()), form, prefix)
    try:
        yield transaction
        await transaction._untold.end(transaction.id)
    except BaseException:
        await _retract(state, transaction.id)
        raise
    _join(state, transaction.id)


def _join(state: State, part: bytes) -> None:
    """Have a part take no more: it came to something, which stands whatever becomes of this. Nobody waits for it, and where
    a cast finds no room a call does, behind all that is to be sent."""
    try:
        state.join.cast(part)
    except Overloaded:
        call = current_or_none()
        with in_hand(None if call is None else call.unhurried()), suppress(AtollError):
            state.join.start(part)  # one that cannot even be sent ends with the transaction


async def _retract(state: State, part: bytes) -> None:
    """Undo a part, also when cancelled. A transaction that has ended meanwhile has nothing to undo. A store that has too
    much in hand is told again: the owner may go on, and would commit what is not undone."""
    pause = _FIRST_PAUSE
    with trio.CancelScope(shield=True), suppress(Aborted):
        last = trio.current_time() + _RETRACTED_WITHIN
        while True:
            try:
                await state.retract(part)
                return
            except (Overloaded, QuotaExceeded):
                if trio.current_time() >= last:
                    raise
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def open_transaction(
    state: State, form: Form[T], prefix: bytes, deadline: float, origins: Origins
) -> AbstractAsyncContextManager[Transaction[T]]:
    """See `Keyspace.transaction`."""
    call = current_or_none()
    if call is not None and call.transaction is not None:
        return _within(state, form, prefix, part_of(call))
    return _opened(state, form, prefix, deadline, origins)


async def retried(
    opened: Callable[[], AbstractAsyncContextManager[Transaction[T]]],
    body: Callable[[Transaction[T]], Awaitable[Any]],
    attempts: int,
    chance: random.Random,
) -> Any:
    """See `Keyspace.retry`. Pauses double, each multiplied by a chance of 0.5 to 1.5, so that rivals do not
    meet again."""
    pause = _FIRST_PAUSE
    for left in range(attempts - 1, -1, -1):
        try:
            async with opened() as transaction:
                return await body(transaction)
        except (Conflict, Aborted):
            if not left:
                raise
        await trio.sleep(pause * chance.uniform(0.5, 1.5))
        pause = min(pause * 2, _LONGEST_PAUSE)
    raise BadRequest("retry: attempts", "at least 1", str(attempts))


class Shares(Protocol):
    """A transaction that others take part in, call by call."""

    state: State

    async def part(self) -> bytes: ...


def shared(transaction: Shares, proxy: I) -> I:
    """See `Transaction.share`."""
    return bind(type(proxy), _Shared(transaction, transport_of(proxy)), options_of(proxy))


class _Shared:
    """A transport whose calls are savepoints of a transaction."""

    def __init__(self, transaction: Shares, inner: Transport) -> None:
        self._transaction = transaction
        self._inner = inner
        self._in_hand = ""

    @property
    def translator(self) -> Translator | None:
        return self._inner.translator

    async def call(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        if self._in_hand:
            raise BadRequest(
                f"{method.label} under a transaction",
                "one call at a time",
                f"{self._in_hand} is still in hand",
            )
        began, limit = trio.current_time(), options.deadline
        options = inherited(options, method)
        self._in_hand = method.label
        try:
            while True:
                try:
                    return await self._attempt(method, payload, options)
                except PeerDied as death:
                    if death.method != method.label or not death.outcome_unknown:
                        raise
                    if not (method.idempotent or method.once):
                        raise
                # The next process is asked, under another part: of what the dead one wrote there nothing is left.
                if limit is not None:
                    left = limit - (trio.current_time() - began)
                    options = msgspec.structs.replace(options, deadline=left)
        finally:
            self._in_hand = ""

    async def _attempt(self, method: MethodSpec, payload: bytes, options: Options) -> Payload:
        state, part = self._transaction.state, await self._transaction.part()
        try:
            reply = await self._inner.call(
                method, payload, msgspec.structs.replace(options, transaction=part)
            )
            _join(state, part)
        except BaseException:
            await _retract(state, part)
            raise
        return reply

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> NoReturn:
        raise self._refusal(method, "a blocking call")

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        raise self._refusal(method, "a started call")

    def cast(self, method: MethodSpec, payload: bytes, options: Options) -> None:
        raise self._refusal(method, "a cast")

    def open(self, method: MethodSpec, payload: bytes, options: Options) -> RawStream:
        raise self._refusal(method, "a stream")

    def statistics(self) -> ChannelStatistics:
        return self._inner.statistics()

    def _refusal(self, method: MethodSpec, got: str) -> BadRequest:
        return BadRequest(f"{method.label} under a transaction", "an awaited call", got)
