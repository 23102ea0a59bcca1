"""The feedback server: batches in and out of the store, training sets and pairs as of a revision."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from difflib import get_close_matches
from itertools import islice
from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import Meta, field, structs

from atoll.ipc.context import current
from atoll.ipc.errors import Aborted, BadRequest, Conflict, PeerDied, PeerMisbehaved
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.keyspace import Row as StoreRow
from atoll.ipc.private.keyspace import Private
from atoll.ipc.published import Published
from atoll.ipc.serve import Config, Serves
from atoll.ipc.system.state import AsOf
from atoll.servers.storage.interface import Storage

from .agreement import Judgements
from .check import Marked, Sentences, check_batch, reference_name
from .interface import (
    EVERYTHING,
    Agreement,
    Batch,
    BatchExists,
    BatchInfo,
    Checked,
    Feedback,
    Invalid,
    Kept,
    NoSuchBatch,
    NoSuchTask,
    Pair,
    Rater,
    Receipt,
    RolledBack,
    Selection,
    Source,
    Statistics,
    Stored,
    TaskCount,
)
from .moments import Moments
from .pairs import Pairs, Rated
from .raters import Register
from .records import BANDS, Rating, Record, is_purged, words_of
from .rows import (
    Appointed,
    Head,
    Row,
    Segment,
    check_selection,
    digest,
    fits,
    head_key,
    may_fit,
    prefixes,
    rater_key,
    split,
    trusted,
)
from .tasks import Tasks
from .texts import OWNER, Texts
from .validation import Bounds, Rules, check_note, check_rater
from .words import Opened, Words, apart, bounds, keys_of_batch, segment_of, together

T = TypeVar("T")

_ATTEMPTS = 8
"""Tries of a transaction that met another one of the same batch, or the end of the store's process."""
_MOST_LISTED = 1000
_LIST_BYTES = 512 * 1024
"""Of one reply that lists: it has to fit a channel."""
_MOST_PAIRS = 1_000_000
_MOST_COMPARED = 10_000
"""Tasks among which a misspelt one is looked for."""


AtLeastOne = Annotated[int, Meta(ge=1)]


class Settings(Config, frozen=True, kw_only=True):
    roles: dict[str, float] = field(
        default_factory=lambda: {"expert": 1.0, "critic": 1.0, "audience": 0.8, "crowd": 0.5}
    )
    """Each role, and the highest trust that a record of it may claim."""
    batch_records: AtLeastOne = 2000
    inline_bytes: AtLeastOne = 4096
    """Of one text; a longer one goes into storage."""
    batch_bytes: AtLeastOne = 512 * 1024
    """Of all inline texts of a batch."""
    batch_groups: AtLeastOne = 256
    """Groups of records of one task, kind and tenth of trust in a batch."""

    def check(self) -> None:
        """Raises BadRequest, naming the role: an annotation of the trust would name none."""
        for role, trust in self.roles.items():
            if not 0.0 <= trust <= 1.0:
                raise BadRequest(f"feedback, config.roles.{role}", "a trust from 0 to 1", f"{trust:g}")


class Server(Serves[Feedback]):
    rows: Keyspace[Row]
    words: Private[Words]
    storage: Storage
    config: Settings
    publishes: ClassVar = {
        "batch": Published("rows", Head, "batch/", moments=("info_submitted",)),
        "rater": Published("rows", Appointed, "rater/"),
    }

    async def start(self) -> None:
        config = self.config
        config.check()
        bounds = Bounds(config.batch_records, config.inline_bytes, config.batch_bytes, config.batch_groups)
        self._rules = Rules(config.roles, bounds)
        self.rows.keep_remote()
        self._tasks = Tasks(self.rows)
        await self._tasks.load()
        self._register = Register(self.rows)
        await self._register.load()
        self._moments = Moments(self.rows.state, self.words.state)
        self._texts = Texts(self.storage, self.rows)

    async def run(self) -> None:
        await self._register.follow()

    # batches ----------------------------------------------------------------------------------------------

    @Feedback.submit.serve
    async def submit(self, batch: Batch) -> Receipt:
        self._rules.check(batch)
        checked = self._register.check(batch.records, current().badge)
        if current().transaction is not None:
            checked = None  # a conflict at its end would be told to its owner, and not here
        mark = (await self._marks(batch))[0]
        head = Head(self._info(batch), mark, [])
        async with self._texts.kept(batch, mark):
            if checked is not None:
                with suppress(Conflict):  # what is known here may be behind
                    return await self._tried(batch, head, checked)
            async with self._register.asking:
                return await self._tried(batch, head, None)

    async def _tried(self, batch: Batch, head: Head, checked: int | None) -> Receipt:
        """`_store`, again where that may help; after a conflict only where the store is asked."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._store(batch, head, checked)
            except Conflict:
                if checked is not None:
                    raise
            except (Aborted, PeerDied):
                continue
        raise _given_up(f"batch {batch.id!r}")

    async def _marks(self, batch: Batch) -> Marked:
        """Hashes that a batch of these records may have: the first is that of one submitted now. It is a keyed one where
        raters wrote something, since whoever has a plain one can try what short words it is of."""
        plain = digest(batch)
        if not any(map(words_of, batch.records)):
            return (plain,)
        return bytes.fromhex(await self.words.hashed(plain.hex())), plain

    def _info(self, batch: Batch) -> BatchInfo:
        call = current()
        return BatchInfo(
            id=batch.id,
            status="stored",
            records=len(batch.records),
            groups=[],
            submitted=call.now(),
            badge=call.badge,
            note=batch.note,
        )

    async def _store(self, batch: Batch, head: Head, checked: int | None) -> Receipt:
        """One transaction: all rows of the batch, or none. `checked`: as of which appointment its raters were; None:
        the store is asked for them, and for its tasks. Raises BatchExists, Invalid, Conflict, Aborted."""
        groups, segments = split(batch)
        held, said = dict[str, Segment](), dict[str, dict[str, Words]]()
        for key, segment in segments.items():
            held[key], said[key] = apart(key, segment)
        async with self.rows.transaction() as tx:
            found = await tx.get(head_key(batch.id))
            if isinstance(found, Head):
                if found.digest not in await self._marks(batch) or found.info.status != "stored":
                    raise BatchExists(batch=batch.id, status=found.info.status)
                row = await self._head(batch.id)
                return Receipt(batch.id, row.revision, found.info.records, repeated=True)
            tasks = {group.task for group in groups}
            await self._register.hold(tx, batch.records, current().badge, checked)
            if checked is None:
                for task in tasks:
                    await self._tasks.learn(task)
            info = structs.replace(head.info, groups=groups)
            counts = [len(words) for words in said.values()]
            tx.put(head_key(batch.id), Head(info, head.digest, list(held), counts if any(counts) else []))
            for key, segment in held.items():
                tx.put(key, segment)
            if any(counts):
                await self._check_purged(batch)
                private = tx.on(self.words)
                for words in said.values():
                    for key, each in words.items():
                        private.put(key, each)
            new = self._tasks.write(tx, tasks)
        if tx.revision is not None:
            self._tasks.written(new, tx.revision)
        return Receipt(batch.id, tx.revision or 0, len(batch.records), repeated=False)

    async def _check_purged(self, batch: Batch) -> None:
        """Raises Invalid for the first record with words of a rater under whose name nothing can be sealed any more."""
        writers = [record.rater if words_of(record) else "" for record in batch.records]
        purged = await self.words.purged(set(writers) - {""})
        for index, rater in enumerate(writers):
            if rater in purged:
                expected = "a rater who was not purged (nobody can write under that name again)"
                raise Invalid(index=index, field="rater", expected=expected, got=repr(rater))

    @Feedback.rollback.serve
    async def rollback(self, batch: str, reason: str) -> RolledBack:
        if not reason:
            raise BadRequest("Feedback.rollback, $.reason", "why the batch is taken back", "an empty text")
        check_note("reason", reason)
        for _ in range(_ATTEMPTS):
            try:
                return await self._take_back(batch, reason)
            except (Conflict, Aborted, PeerDied):
                continue
        raise _given_up(f"roll-back of {batch!r}")

    async def _take_back(self, batch: str, reason: str) -> RolledBack:
        """One transaction. The batch's blobs stay referred to: sets as of earlier revisions still name
        them.
        """
        async with self.rows.transaction() as tx:
            head = await tx.get(head_key(batch))
            if not isinstance(head, Head):
                raise NoSuchBatch(batch=batch)
            if head.info.status == "rolled back":
                row = await self._head(batch)
                return RolledBack(batch, row.revision, head.info.records, repeated=True)
            for key in head.segments:
                tx.delete(key)
            private = tx.on(self.words)
            for key in keys_of_batch(head):
                private.delete(key)
            info = structs.replace(head.info, status="rolled back", reason=reason)
            tx.put(head_key(batch), structs.replace(head, info=info))
        return RolledBack(batch, tx.revision or 0, head.info.records, repeated=False)

    async def _head(self, batch: str) -> StoreRow[Row]:
        row = await self.rows.row(head_key(batch))
        if row is None:
            raise NoSuchBatch(batch=batch)
        return row

    @Feedback.batch.serve
    async def batch(self, id: str) -> BatchInfo:
        return _told(await self._head(id))

    @Feedback.batches.serve
    async def batches(
        self, selection: Selection = EVERYTHING, after: str = "", limit: int = 100
    ) -> list[BatchInfo]:
        if not 1 <= limit <= _MOST_LISTED:
            raise BadRequest("Feedback.batches, $.limit", f"1 to {_MOST_LISTED}", str(limit))
        check_selection("Feedback.batches, $.selection.min_trust", selection)
        found: list[BatchInfo] = []
        size = 0
        start = f"{head_key(after)}\0" if after else head_key("")
        async with closing(self.rows.range(start, "batch0")) as rows:
            async for row in rows:
                info = _told(row)
                if selection == EVERYTHING or may_fit(selection, info):
                    found.append(info)
                    size += len(msgspec.msgpack.encode(info))
                if len(found) == limit or size > _LIST_BYTES:
                    break
        return found

    # reading ----------------------------------------------------------------------------------------------

    @Feedback.records.serve
    async def records(self, selection: Selection = EVERYTHING, after: int = 0) -> AsyncIterator[Stored]:
        check_selection("Feedback.records, $.selection.min_trust", selection)
        async with closing(self._selected(selection, await self.rows.state.head())) as found:
            async for stored in found:
                if stored.position > after:
                    yield stored

    @Feedback.training_set.serve
    async def training_set(
        self, task: str, as_of: AsOf = None, min_trust: float = 0.0, after: int = 0
    ) -> AsyncIterator[Stored]:
        selection = Selection(task=task, min_trust=min_trust)
        check_selection("Feedback.training_set, $.min_trust", selection)
        await self._check_task(task)
        async with closing(self._selected(selection, await self._moment(as_of))) as found:
            async for stored in found:
                if stored.position > after:
                    yield stored

    @Feedback.draw_pairs.serve
    async def draw_pairs(
        self,
        task: str,
        seed: int,
        count: int,
        as_of: AsOf = None,
        min_trust: float = 0.0,
        after: int = 0,
    ) -> AsyncIterator[Pair]:
        if not 1 <= count <= _MOST_PAIRS:
            raise BadRequest("Feedback.draw_pairs, $.count", f"1 to {_MOST_PAIRS}", str(count))
        selection = Selection(task=task, kind="rating", min_trust=min_trust)
        check_selection("Feedback.draw_pairs, $.min_trust", selection)
        await self._check_task(task)
        ratings = [
            Rated(
                record.prompt,
                record.score,
                Source(stored.batch, stored.index, record.rater, stored.revision),
                stored.trust,
                record.text,
            )
            async for stored in self._selected(selection, await self._moment(as_of))
            if isinstance(record := stored.record, Rating)
            and record.text is not None
            and record.prompt is not None
        ]
        for pair in Pairs(ratings).draw(seed, count):
            if pair.position > after:
                yield pair

    async def _check_task(self, task: str) -> None:
        if not await self._tasks.learn(task):  # of the store, since a roll-back of the keyspace takes rows
            near = get_close_matches(task, list(islice(self._tasks, _MOST_COMPARED)))
            raise NoSuchTask(task=task, near=near)

    async def _known(self, revision: int) -> list[str]:
        """All tasks, as of a revision, in the order of their names."""
        rows = self.rows.range("task/", "task0", as_of=revision)
        return sorted([row.key.removeprefix("task/") async for row in rows])

    async def _moment(self, as_of: AsOf) -> int:
        if as_of is None:
            return await self.rows.state.head()
        if isinstance(as_of, float):
            return await self.revision_at(as_of)
        if as_of < 0:
            raise BadRequest("Feedback, $.as_of", "a revision (0 or more)", str(as_of))
        return as_of

    @Feedback.head.serve
    async def head(self) -> int:
        return await self.rows.state.head()

    @Feedback.revision_at.serve
    async def revision_at(self, time: float) -> int:
        """A time to come is refused: what is the newest revision then is not known yet."""
        expected = "a time that has passed, in seconds since the epoch, and since the store's first revision"
        if not (math.isfinite(time) and 0 <= time <= current().now()):
            raise BadRequest("Feedback, a moment", expected, repr(time))
        revision = await self.rows.state.revision_at(time)
        if not revision:
            raise BadRequest("Feedback, a moment", expected, repr(time))
        return revision

    @Feedback.keep.serve
    async def keep(self, name: str, as_of: AsOf = None, why: str = "") -> Kept:
        revision = 0 if as_of is None else await self._moment(as_of)
        if as_of == 0:
            raise BadRequest("Feedback.keep, $.as_of", "a revision (1 or more) or a time", repr(as_of))
        return await self._moments.hold(name, revision, why)

    @Feedback.let_go.serve
    async def let_go(self, name: str) -> None:
        await self._moments.let_go(name)

    @Feedback.kept.serve
    async def kept(self) -> list[Kept]:
        return await self._moments.held()

    async def _selected(self, selection: Selection, revision: int) -> AsyncIterator[Stored]:
        """What fits, as of a revision, in the order of the keys (of a batch: of its indexes), numbered
        from 1.
        """
        position = 0
        most = {rater.name: rater.trust async for rater in self._appointed(revision) if rater.trust < 1.0}
        parts = (
            self._batch_parts(selection.batch, revision)
            if selection.batch
            else self._task_parts(selection, revision)
        )
        async with closing(parts):
            async for stored_in, part in parts:
                for index, record in zip(part.indexes, part.records, strict=True):
                    trust = trusted(record, most)
                    if fits(selection, record, trust):
                        position += 1
                        yield Stored(position, part.batch, index, record, trust, stored_in)

    async def _appointed(self, revision: int) -> AsyncIterator[Rater]:
        async for row in self.rows.range("rater/", "rater0", as_of=revision):
            if isinstance(row.value, Appointed):
                yield row.value.rater

    async def _task_parts(self, selection: Selection, revision: int) -> AsyncIterator[tuple[int, Segment]]:
        tasks = [] if selection.task else await self._known(revision)
        for prefix in prefixes(selection, tasks):
            async with closing(self.rows.range(prefix, prefix[:-1] + "0", as_of=revision)) as rows:
                async for row in rows:
                    if isinstance(row.value, Segment):
                        yield row.revision, await self._read(row.key, row.value, revision)

    async def _batch_parts(self, batch: str, revision: int) -> AsyncIterator[tuple[int, Segment]]:
        """The whole batch as one segment, in its own order, and the revision in which it was stored."""
        head = await self.rows.get(head_key(batch), as_of=revision)
        if not isinstance(head, Head):
            raise NoSuchBatch(batch=batch)
        if head.info.status == "rolled back":
            return
        rows = await self.rows.rows_at(head.segments, as_of=revision)
        held = [
            pair
            for row in rows
            if row is not None and isinstance(row.value, Segment)
            for pair in _numbered(await self._read(row.key, row.value, revision))
        ]
        held.sort(key=lambda pair: pair[0])
        whole = Segment(batch, [index for index, _ in held], [record for _, record in held])
        yield max(row.revision for row in rows if row), whole

    async def _opened(self, key: str, segment: Segment, revision: int) -> Opened:
        """A segment with its words, as of the moment of which it is."""
        said = self.words.range(*bounds(key), as_of=revision)
        return together(key, segment, {row.key: row async for row in said})

    async def _read(self, key: str, segment: Segment, revision: int) -> Segment:
        if not any(map(is_purged, segment.records)):
            return segment
        opened = await self._opened(key, segment, revision)
        if opened.wrong:
            raise PeerMisbehaved(
                f"row {opened.wrong[0]!r}", "the store has other words there than were submitted"
            )
        return opened.segment

    @Feedback.agreement.serve
    async def agreement(self, task: str, as_of: AsOf = None) -> Agreement:
        await self._check_task(task)
        judgements = Judgements(task)
        async for stored in self._selected(Selection(task=task), await self._moment(as_of)):
            judgements.add(stored.record)
        return judgements.result()

    @Feedback.statistics.serve
    async def statistics(self) -> Statistics:
        """From the heads alone: one row a batch."""
        revision = await self.rows.state.head()
        tasks = {task: TaskCount(task, {}, [0] * BANDS) for task in await self._known(revision)}
        batches = rolled_back = records = 0
        async for row in self.rows.range("batch/", "batch0", as_of=revision):
            info = _told(row)
            batches += 1
            if info.status == "rolled back":
                rolled_back += 1
                continue
            records += info.records
            for group in info.groups:
                count = tasks.setdefault(group.task, TaskCount(group.task, {}, [0] * BANDS))
                count.kinds[group.kind] = count.kinds.get(group.kind, 0) + group.records
                count.bands[group.band] += group.records
        told = list(islice(tasks.values(), _MOST_LISTED))
        return Statistics(batches, rolled_back, records, told, revision, len(tasks) - len(told))

    @Feedback.check.serve
    async def check(self) -> Checked:
        revision = await self.rows.state.head()
        kept = await self._kept()
        tasks = set(await self._known(revision))
        problems, stray = Sentences(), Sentences()
        named: set[str] = set()
        needed: set[str] = set()
        batches = records = purged = 0
        async for row in self.rows.range("batch/", "batch0", as_of=revision):
            head = row.value
            assert isinstance(head, Head), f"{row.key} holds no head of a batch"
            batches += 1
            needed.add(reference_name(head.info.id, head.digest))
            if head.info.status == "stored":
                segments = await self._segments(head, revision)
                problems.add(*await check_batch(head, segments, tasks, kept, self._marks))
                purged += sum(segment.purged for segment in segments.values() if segment)
                named.update(head.segments)
                records += head.info.records
        async for row in self.rows.range("set/", "set0", as_of=revision):
            if row.key not in named:
                problems.add(f"{row.key} is named by no head of a stored batch")
        async for words in self.words.range(as_of=revision):
            if segment_of(words.key) not in named:
                problems.add(f"the words at {words.key} are of no stored batch")
        stray.add(*sorted(kept - needed))
        return Checked(batches, records, revision, problems.all(), stray.all(), purged)

    async def _segments(self, head: Head, revision: int) -> dict[str, Opened | None]:
        """What lies where the head of a batch says that its segments are."""
        rows = await self.rows.rows_at(head.segments, as_of=revision)
        return {
            key: await self._opened(key, row.value, revision)
            if row and isinstance(row.value, Segment)
            else None
            for key, row in zip(head.segments, rows, strict=True)
        }

    async def _kept(self) -> set[str]:
        """The names of our references in storage."""
        kept: set[str] = set()
        after = ""
        while names := await self.storage.references(OWNER, after):
            kept.update(names)
            after = names[-1]
        return kept

    # raters -----------------------------------------------------------------------------------------------

    @Feedback.raters.serve
    async def raters(self, after: str = "", limit: int = _MOST_LISTED) -> list[Rater]:
        if not 1 <= limit <= _MOST_LISTED:
            raise BadRequest("Feedback.raters, $.limit", f"1 to {_MOST_LISTED}", str(limit))
        start = f"{rater_key(after)}\0" if after else rater_key("")
        found: list[Rater] = []
        size = 0
        async with closing(self.rows.range(start, "rater0", limit=limit)) as rows:
            async for row in rows:
                if isinstance(row.value, Appointed):
                    found.append(row.value.rater)
                    size += len(msgspec.msgpack.encode(row.value))
                if size > _LIST_BYTES:
                    break
        return found

    @Feedback.appoint.serve
    async def appoint(self, rater: Rater) -> int:
        check_rater(rater)
        return await self._register.appoint(rater)


def _given_up(what: str) -> Aborted:
    return Aborted(what, f"others wrote it, or the store went down, in each of {_ATTEMPTS} attempts")


def _numbered(segment: Segment) -> Iterator[tuple[int, Record]]:
    return zip(segment.indexes, segment.records, strict=True)


def closing(rows: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """A generator that may be left before its end is closed then and there, not by the garbage collector."""
    assert isinstance(rows, AsyncGenerator)
    return aclosing(rows)


def _told(row: StoreRow[Row]) -> BatchInfo:
    assert isinstance(row.value, Head), f"{row.key} holds no head of a batch"
    return structs.replace(row.value.info, revision=row.revision)
