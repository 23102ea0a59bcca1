"""The kernel's rows in the store: how a commit gets there, and what happens while the store does not serve.

Before `state` serves for the first time in a boot, and for what is about `state` itself, changes go to the boot
journal and become rows as soon as it does. Every other system call waits until it serves, up to its deadline. What it
has sent it sees through, whatever its deadline: a commit whose outcome nobody waits for could be neither told nor
undone. If `state` dies over it, the channel repeats it under its id. A decision that the store has no room for, and that
stands all the same, waits in the journal, too.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

import trio

from atoll.ipc.context import current_or_none, in_hand
from atoll.ipc.errors import AtollError, DecodeFaults, NodeDown, PeerFault
from atoll.ipc.system.calls import ChunkRow
from atoll.ipc.system.records import LogRow, Row, after, decode
from atoll.ipc.system.state import Item, State, Write, absolute, relative
from atoll.ipc.transport import Options

from .changes import Batch, Changes, Found
from .journal import Journal

PAGE = 1000
GATHER = 0.05
"""Seconds in which rows that nobody waits for are gathered into one commit."""
ROOM_AGAIN = 1.0
"""Seconds until what the store refused and is not given up is tried again, if nothing else is to be committed before."""
BATCH_MOST = 500
BYTES_MOST = 256 << 10
"""Rows of a commit that nobody waits for: it is one message to the store."""
JOURNAL_RECORDS_MOST = 64
"""Records beyond which the journal is written anew, with no more than what stands."""


class Store:
    """The kernel's keyspace; `changes.Records`."""

    def __init__(self, journal: Journal, boot: int) -> None:
        self.journal = journal
        self.boot = boot
        self.keyspace = 0
        self.log = 0
        """The keyspace of log lines."""
        self._state: State | None = None
        self._serves = False
        self._losses = 0
        """How often it was lost: who settles with one that was lost meanwhile does not say that it serves."""
        self._change = trio.Event()
        """Set at the next change of whether `state` serves."""
        self._ended = False
        self._turn = trio.StrictFIFOLock()
        """Of commits that wait for the store, or for what waits in the journal of their rows. They go in the order in which
        they were decided, and nothing newer before them: of one row the last decision stands."""
        self._hurried: set[trio.CancelScope] = set()
        """Commits of what may wait in the journal as well: they do not wait for a store that is down."""
        self.gave_up: Callable[[int], None] = lambda count: None
        """Told how many rows of the record the store refused, once it takes some again."""
        self._later: dict[bytes, bytes | None] = {}
        self._taken: dict[bytes, bytes | None] = {}
        """Those of them that are being committed."""
        self._sent: frozenset[bytes] = frozenset()
        """Keys of those of them that were sent, and are not answered."""
        self._answered = trio.Event()
        self._owed: set[bytes] = set()
        """Keys of those that are a decision, or end one: what the store refuses of them is not given up."""
        self._put_off: dict[bytes, bytes | None] = {}
        """What it refused of them, until the next flush."""
        self._refused = 0
        self._flushing = trio.Lock()
        self._some = trio.Event()
        self._numbers = 0

    @property
    def state(self) -> State:
        """The store's interface, unbadged."""
        if self._state is None:
            raise RuntimeError("the store was asked for before it served")
        return self._state

    @property
    def serves(self) -> bool:
        """Whether `state` takes calls now, as far as is known."""
        return self._serves

    async def opened(self, state: State, keyspace: int) -> None:
        """`state` serves, for the first time or again: what waited in the journal becomes rows."""
        self._state, self.keyspace = state, keyspace
        await self._settle()

    def reopen(self, state: State) -> None:
        """The store through another capability."""
        self._state = state

    async def settle(self) -> None:
        """`state` serves again: commits what waits in the journal. What the store refuses waits on: nobody is here to be
        told. Before `opened` nothing can: that will do it."""
        if self._state is not None:
            with suppress(AtollError):
                await self._settle()

    async def _settle(self) -> None:
        """What waits is committed before the store takes anything else, as far as it takes it. Raises the first refusal."""
        losses = self._losses
        try:
            refusal = await self._commit_all_waiting()
        finally:
            if losses == self._losses:
                self._serves = True
                self._changed()
        if refusal is not None:
            raise refusal

    async def _commit_all_waiting(self) -> AtollError | None:
        """In the order in which it was decided, with what comes to wait meanwhile. Returns the first refusal: what was
        refused stays in the journal, and nothing newer of its rows goes before it."""
        tried, refused = set[bytes](), set[bytes]()
        refusal: AtollError | None = None
        while changes := next((each for each in self.journal.waiting.values() if each.id not in tried), None):
            tried.add(changes.id)
            try:
                if refused.isdisjoint(changes.writes):
                    await self._commit_waiting(changes)
                    continue
            except PeerFault:
                break
            except AtollError as error:
                refusal = refusal or error
            refused.update(changes.writes)
        return refusal

    def lost(self) -> None:
        """`state` is down, or about to be swapped: what is about it goes to the journal meanwhile."""
        self._losses += 1
        self._serves = False
        self._changed()
        for scope in self._hurried:
            scope.cancel()

    def end(self) -> None:
        """`state` has ended for good: whoever waits for it is told."""
        self._serves, self._ended = False, True
        self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()

    async def commit(self, changes: Changes) -> int:
        """The revision, once durable; 0 while only the journal has it. Raises `NodeDown` where `state`
        has ended with the node."""
        if self._state is None:
            with self._instead(changes):
                self.journal.wait(changes)
            return 0
        if not self._serves or self._turn.locked() or self._before(changes) or self._on_their_way(changes):
            async with self._turn:
                await self._until_it_serves()
                await self._commit_before(changes)
                while self._on_their_way(changes):
                    await self._answered.wait()
                    await self._commit_before(changes)
        with trio.CancelScope(shield=True), self._instead(changes):
            return await self._send(changes)
        raise AssertionError("a shielded scope is not cancelled")

    async def commit_or_keep(self, changes: Changes) -> None:
        """For what is about `state` itself: into the journal while the store is down. Never waits for it to come up again,
        since that may wait for whoever asks. Raises `OSError` where the journal takes no more."""
        scope = trio.CancelScope()
        with self._instead(changes):
            if self._state is not None and self._serves:
                self._hurried.add(scope)
                try:
                    with scope:
                        await self._commit_before(changes)
                        await self._send(changes)
                        return
                finally:
                    self._hurried.discard(scope)
            self.journal.wait(changes)  # if it was committed after all, it is so a second time under its id

    @contextmanager
    def _instead(self, changes: Changes) -> Iterator[None]:
        """These changes take the place of what `later` was told of the same rows before, which must not overwrite what
        somebody was told is so; unless they come to nothing."""
        older = {  # the latest of them last: should this come to nothing, it is what is told
            key: waiting.pop(key)
            for waiting in (self._put_off, self._taken, self._later)
            for key in changes.writes
            if key in waiting
        }
        try:
            yield
        except BaseException:
            self._later = older | self._later
            self._some.set()
            raise
        self._owed.difference_update(changes.writes)

    def _before(self, changes: Changes) -> list[Changes]:
        """What waits in the journal of the same rows, and of those that are written with them there."""
        found, rows = list[Changes](), set(changes.writes)
        for older in reversed(self.journal.waiting.values()):
            if older.id != changes.id and not rows.isdisjoint(older.writes):
                found.append(older)
                rows.update(older.writes)
        return found[::-1]

    def _on_their_way(self, changes: Changes) -> bool:
        """Whether rows of the record are that these are newer than. If the store dies over both, both are sent again; those
        have no id, and would be written over these, of which it knows that it has them."""
        return not self._sent.isdisjoint(changes.writes)

    async def _commit_before(self, changes: Changes) -> None:
        """What waits in the journal of the same rows goes first: later it would undo them. Whoever awaited this sends at
        once, or looks again at what is to be sent: meanwhile others decide. Raises what a commit of it raises."""
        for older in self._before(changes):
            await self._commit_waiting(older)

    async def _commit_waiting(self, changes: Changes) -> None:
        await self._send(changes)
        with suppress(OSError):  # no room: it stays, and is committed again, which changes nothing
            self.journal.settle(changes.id)
        for waiting in (self._taken, self._later, self._put_off):
            for key, value in changes.writes.items():
                if key in waiting and waiting[key] == value:
                    del waiting[key]
                    self._owed.discard(key)
        if self.journal.records > JOURNAL_RECORDS_MOST + len(self.journal.waiting):
            with suppress(OSError):  # no room for a second one: it stays as long as it is
                self.journal.compact()

    async def _send(self, changes: Changes) -> int:
        if not changes.writes:
            return 0
        call = current_or_none()
        state = self.state if call is None else self.state.with_options(Options(trace=call.trace))
        with in_hand(None):  # what was begun is seen through: the caller's deadline is not the commit's
            done = await state.commit(
                [Write(self._absolute(key), value) for key, value in changes.writes.items()],
                id=changes.id,
                note=changes.note,
            )
        return done.revision

    def _absolute(self, key: bytes) -> bytes:
        return absolute(self.log if key[:1] == LogRow.table else self.keyspace, key)

    async def append(self, keyspace: int, row: Row) -> None:
        """A row of another keyspace, where none is, once the store serves. Raises what an append raises."""
        await self._until_it_serves()
        await self.state.append([Write(absolute(keyspace, row.key()), row.value())], note="record")

    async def put_away(self, keyspace: int, process: int) -> int:
        """Up to where a process of this boot has put its tape away."""
        await self._until_it_serves()
        start = absolute(keyspace, ChunkRow.key_of(self.boot, process))
        last = await self.state.range(start, after(start), 1, reverse=True)
        for item in last.items:
            with suppress(*DecodeFaults):  # a process that was taken over may have written anything
                row = decode(ChunkRow, item.value or b"")
                return row.position + len(row.tape)
        return 0

    async def _until_it_serves(self) -> None:
        while not self._serves:
            if self._ended:
                raise NodeDown()
            await self._change.wait()

    async def range(self, prefix: bytes) -> AsyncIterator[Found]:
        """All rows under a prefix as of one revision."""
        start, end = absolute(self.keyspace, prefix), after(absolute(self.keyspace, prefix))
        as_of: int | None = None
        while True:
            page = await self.state.range(start, end, PAGE, as_of)
            for item in page.items:
                yield _found(item)
            if not page.more or not page.items:
                return
            start, as_of = page.items[-1].key + b"\0", page.revision

    def batch(self, note: str) -> Batch:
        """A batch of a system call that is not repeated: its origin is a number of this boot."""
        self._numbers += 1
        return Batch(b"boot %d, batch %d" % (self.boot, self._numbers), note)

    # what nobody waits for ----------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether more rows of the record wait than one commit takes: who has many to tell of keeps them meanwhile."""
        return len(self._later) > BATCH_MOST

    def later(self, batch: Batch, *, keep: bool = False) -> None:
        """Rows of the record (logs, refusals, events): committed in the background, together with others. `keep`: what the
        store refuses of them is not given up as long as the node lives."""
        writes = batch.changes().writes
        self._later.update(writes)
        if keep:
            self._owed.update(writes)
        self._some.set()

    def owe(self, batch: Batch) -> None:
        """A decision that nobody waits for, or that the store had no room for: committed as what `later` is told, but not
        given up. If the node ends before, the next boot finds it in the journal. Whoever decides anew comes after it."""
        self.later(batch, keep=True)
        with suppress(OSError):  # no room there either: it is known as long as the node lives
            self.journal.wait(batch.changes())

    async def write_later(self) -> None:
        """Commits what `later` collected. Runs as long as the kernel."""
        while True:
            with trio.move_on_after(ROOM_AGAIN if self._put_off else math.inf):
                await self._some.wait()
            await trio.sleep(GATHER)
            await self.flush()
            if self._later:  # what was put off is among it, for which nobody set this
                self._some.set()
            else:
                self._some = trio.Event()

    async def flush(self) -> None:
        """Commits what is there now. What the store refuses is given up and counted: it is a record, not a decision."""
        async with self._flushing:
            await self._flush()

    async def _flush(self) -> None:
        most = BATCH_MOST
        self._later, self._put_off = self._put_off | self._later, {}
        while self._later and self._state is not None and self._serves:
            self._taken = self._some_of(most)
            try:
                await self._commit_before(self._record())
                await self._send_record()
            except PeerFault:
                self._later = self._taken | self._later
                return
            except AtollError:
                if len(self._taken) > 1:  # one row that cannot be takes no other along
                    most = len(self._taken) // 2
                    self._later = self._taken | self._later
                elif self._taken.keys() <= self._owed:
                    self._put_off |= self._taken
                else:
                    self._refused += len(self._taken)
            else:
                most = BATCH_MOST
                self._owed -= self._taken.keys()
                if self._refused:
                    self.gave_up(self._refused)
                    self._refused = 0
            finally:
                self._taken = {}

    async def _send_record(self) -> None:
        record = self._record()
        self._sent, self._answered = frozenset(record.writes), trio.Event()
        try:
            await self._send(record)
        finally:
            self._sent = frozenset()
            self._answered.set()

    def _record(self) -> Changes:
        """What is being committed, less what was decided anew. Without an id, which the store would keep for ever: a
        repetition writes the very same rows."""
        return Changes(id=b"", writes=dict(self._taken), note="record")

    def _some_of(self, most: int) -> dict[bytes, bytes | None]:
        """Taken out of `later`, in its order: rows for one message to the store."""
        taken, size = dict[bytes, bytes | None](), 0
        for key in list(islice(self._later, most)):
            size += len(key) + len(self._later[key] or b"")
            if taken and size > BYTES_MOST:
                break
            taken[key] = self._later.pop(key)
        return taken


def _found(item: Item) -> Found:
    _, key = relative(item.key)
    return Found(key=key, value=item.value or b"")
