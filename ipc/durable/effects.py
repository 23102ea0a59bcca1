"""What a step does to the store: collected while it runs, committed with the record that it ran.

Reads are of now, and what was read must still be so at the commit: a step that meets others' writes there is run
again. A step that writes in one keyspace only, that of the workflows, costs one commit. Where others take part, other
keyspaces or servers, there is a transaction at the store.

To the store all of this is nobody's call: the calls of a step are counted, and these are not the step's own.
"""

from collections.abc import Callable
from typing import Final

import trio

from atoll.ipc.context import in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import Aborted
from atoll.ipc.participation import abandon, new_transaction, when
from atoll.ipc.system.state import Committed, Compacted, Expect, Item, Page, Range, State, Write

DEADLINE: Final = 300.0
"""Seconds for which a step's transaction may be open, from where it first takes in another server or keyspace."""


class _Touched:
    """What a step did in one keyspace and has not told the store."""

    __slots__ = ("appends", "ranges", "reads", "state", "writes")

    def __init__(self, state: State) -> None:
        self.state = state
        self.reads: dict[bytes, int] = {}
        self.ranges: list[Range] = []
        self.writes: dict[bytes, Write] = {}
        self.appends: list[Write] = []
        """Rows under keys that were never written: who may do no more than add them has no `commit`."""

    @property
    def untold(self) -> bool:
        return bool(self.reads or self.ranges or self.writes or self.appends)

    @property
    def expects(self) -> list[Expect | Range]:
        """What was read must still be so."""
        return [*[Expect(*read) for read in self.reads.items()], *self.ranges]

    def over(self, items: list[Item], start: bytes, end: bytes) -> list[Item]:
        """What the store has from `start` up to `end`, under what was written here."""
        own = {
            write.key: write.value
            for write in (*self.appends, *self.writes.values())
            if start <= write.key and (not end or write.key < end)
        }
        if not own:
            return items
        kept = [item for item in items if item.key not in own]
        kept += [Item(key, value, 0, 0) for key, value in own.items() if value is not None]
        return sorted(kept, key=lambda item: item.key)

    def write(self, write: Write) -> None:
        """A row that was appended here, and that nobody was told of, is a new one with this value; or none, if it goes."""
        appended = [row for row in self.appends if row.key == write.key]
        for row in appended:
            self.appends.remove(row)
        if appended and write.value is not None:
            self.appends.append(write)
        else:
            self.writes[write.key] = write

    async def tell(self, transaction: bytes) -> None:
        """Tell it; what is not answered for is told again. What the step does meanwhile stays to be told."""
        reads, ranges, expects = dict(self.reads), len(self.ranges), self.expects
        writes = dict(self.writes)
        if expects or writes:
            await self.state.commit(list(writes.values()), expects, transaction=transaction)
            del self.ranges[:ranges]
        if self.appends:
            appends, self.appends = self.appends, []
            try:
                # Told twice they would meet themselves: whoever is cancelled, whether they were told must be known.
                with trio.CancelScope(shield=True):
                    await self.state.append(appends, transaction=transaction)
            except BaseException:
                self.appends = appends + self.appends
                raise
        self.reads = {key: revision for key, revision in self.reads.items() if key not in reads}
        self.writes = {key: write for key, write in self.writes.items() if writes.get(key) is not write}


class Effects:
    """Of one attempt of one step; `state` is the capability by which it is committed."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._touched: dict[int, _Touched] = {}
        self._seen: list[Callable[[int], None]] = []
        self._transaction = b""
        """At the store; drawn here, so that it can be ended also where nobody heard that it has begun."""
        self._begun = False
        self._telling = trio.Lock()
        """Calls of one step may be beside each other, and share one transaction."""

    def _of(self, state: State) -> _Touched:
        found = self._touched.get(id(state))
        if found is None:
            found = self._touched[id(state)] = _Touched(state)
        return found

    def read(self, state: State, key: bytes) -> Deferred[Item | None]:
        touched = self._of(state)
        own = touched.writes.get(key) or next((row for row in touched.appends if row.key == key), None)
        if own is not None:
            return Deferred.resolved(Item(key, own.value, 0, 0))
        done: Deferred[Item | None] = Deferred()
        if self._begun:
            with in_hand(None):
                when(lambda: state.read.start(self._transaction, key), done.complete, done.fail)
            return done

        def found(item: Item | None) -> None:
            touched.reads.setdefault(key, 0 if item is None else item.revision)
            done.complete(item)

        with in_hand(None):
            when(lambda: state.get.start(key), found, done.fail)
        return done

    async def scan(self, state: State, start: bytes, end: bytes, limit: int) -> Page:
        if self._begun:
            whole = await self.whole()
            with in_hand(None):
                return await state.scan(whole, start, end, limit)
        with in_hand(None):
            page = await state.range(start, end, limit)
        rest = page.items[-1].key + b"\0" if page.more else b""
        touched = self._of(state)
        touched.ranges.append(Range(start, rest or end, page.revision))
        return Page(touched.over(page.items, start, rest or end), page.more, page.revision, rest)

    def write(
        self, state: State, writes: list[Write], seen: Callable[[int], None], *, new: bool = False
    ) -> Deferred[None]:
        touched = self._of(state)
        if new:
            touched.appends += writes
        else:
            for write in writes:
                touched.write(write)
        self._seen.append(seen)
        return Deferred.resolved(None)

    async def whole(self) -> bytes:
        async with self._telling:
            with in_hand(None):
                if not self._begun:
                    self._transaction = self._transaction or new_transaction()
                    self._transaction = await self.state.begin(DEADLINE, transaction=self._transaction)
                    self._begun = True
                for each in list(self._touched.values()):
                    if each.untold:
                        await each.tell(self._transaction)
            return self._transaction

    async def part(self) -> bytes:
        """For one call of another server; see `Transaction.share`."""
        whole = await self.whole()
        with in_hand(None):
            return await self.state.share(whole)

    async def commit(self, record: list[Write], expects: list[Expect | Range], note: str) -> Committed:
        """All that was done, and the record of it, or nothing. Raises `Conflict`, `Aborted`, and what a commit
        raises."""
        try:
            outcome = await self._committed(record, expects, note)
        except Compacted as fault:
            # The past since then was given up: nobody can say any more that nothing has gone from a range that was read.
            raise Aborted("a step", str(fault)) from fault
        for seen in self._seen:
            seen(outcome.revision)
        return outcome

    async def _committed(self, record: list[Write], expects: list[Expect | Range], note: str) -> Committed:
        if not self._begun and not any(
            each.state is not self.state or each.appends for each in self._touched.values()
        ):
            own = self._of(self.state)
            return await self.state.commit(
                [*own.writes.values(), *record], [*expects, *own.expects], note=note
            )
        transaction = await self.whole()
        await self.state.commit(record, expects, transaction=transaction)
        outcome = await self.state.finish(transaction, note=note)
        self._transaction, self._begun = b"", False
        return outcome

    def forget(self) -> None:
        """Nothing of it is to be; also when cancelled."""
        if self._transaction:
            abandon(self.state, self._transaction)
