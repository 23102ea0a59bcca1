"""The feedback server: batches in and out of the store, training sets and pairs as of a revision."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from msgspec import field, structs

from atoll.ipc.context import current
from atoll.ipc.errors import Aborted, BadRequest, Conflict
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.keyspace import Row as StoreRow
from atoll.ipc.serve import Config, Serves
from atoll.servers.storage.interface import NoSuchBlob, Storage

from .agreement import Judgements
from .interface import (
    EVERYTHING,
    Agreement,
    Batch,
    BatchExists,
    BatchInfo,
    Feedback,
    Invalid,
    NoSuchBatch,
    Pair,
    Receipt,
    RolledBack,
    Selection,
    Statistics,
    Stored,
    TaskCount,
)
from .pairs import Pairs, Rated
from .records import BANDS, Rating, blobs
from .rows import (
    Head,
    Known,
    Row,
    Segment,
    digest,
    fits,
    head_key,
    may_fit,
    prefixes,
    split,
    task_key,
)
from .validation import Rules

T = TypeVar("T")

OWNER = "feedback"
"""Under which blobs are referred to in storage; the name is the batch's id and digest."""
_ATTEMPTS = 8
"""Tries of a transaction that met another one of the same batch."""
_MOST_LISTED = 1000
_MOST_PAIRS = 1_000_000


class Settings(Config, frozen=True, kw_only=True):
    roles: dict[str, float] = field(
        default_factory=lambda: {"expert": 1.0, "critic": 1.0, "audience": 0.8, "crowd": 0.5}
    )
    """Each role, and the highest trust that a record of it may claim."""
    batch_records: int = 2000
    inline_bytes: int = 4096
    """Of one text; a longer one goes into storage."""
    batch_bytes: int = 512 * 1024
    """Of all inline texts of a batch."""


class Server(Serves[Feedback]):
    rows: Keyspace[Row]
    storage: Storage
    config: Settings

    async def start(self) -> None:
        config = self.config
        self._rules = Rules(config.roles, config.batch_records, config.inline_bytes, config.batch_bytes)
        self.rows.keep_remote()
        self._tasks = {row.key.removeprefix("task/") async for row in self.rows.range("task/", "task0")}

    # batches ----------------------------------------------------------------------------------------------

    @Feedback.submit.serve
    async def submit(self, batch: Batch) -> Receipt:
        self._rules.check(batch)
        mark = digest(batch)
        name = f"{batch.id}/{mark.hex()}"
        await self._keep_blobs(batch, name)
        head = Head(self._info(batch), mark, [])
        for _ in range(_ATTEMPTS):
            try:
                return await self._store(batch, head)
            except (Conflict, Aborted):
                continue
            except BatchExists:
                await self._forget_blobs(batch, mark, name)
                raise
        raise Aborted(f"batch {batch.id!r}", f"others wrote it in each of {_ATTEMPTS} attempts")

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

    async def _keep_blobs(self, batch: Batch, name: str) -> None:
        """Refer to the batch's blobs before its rows exist: a row never names a blob that may be collected.

        A crash in between leaves a reference without a batch, which a repeated submission makes right.
        """
        kept = blobs(batch.records)
        if not kept:
            return
        try:
            await self.storage.refer([ref.hash for _, ref in kept], OWNER, name)
        except NoSuchBlob as missing:
            index, ref = kept[missing.index]
            expected = "texts that are in storage (put them before the batch)"
            raise Invalid(index=index, field="text", expected=expected, got=f"{ref}, which is not") from None

    async def _forget_blobs(self, batch: Batch, mark: bytes, name: str) -> None:
        """Release what a refused batch referred to, unless it is the very batch that stands there."""
        row = await self.rows.row(head_key(batch.id))
        if blobs(batch.records) and not (row and isinstance(row.value, Head) and row.value.digest == mark):
            await self.storage.release(OWNER, name)

    async def _store(self, batch: Batch, head: Head) -> Receipt:
        """One transaction: all rows of the batch, or none. Raises BatchExists, Conflict, Aborted."""
        groups, segments = split(batch)
        async with self.rows.transaction() as tx:
            found = await tx.get(head_key(batch.id))
            if isinstance(found, Head):
                if found.digest != head.digest or found.info.status != "stored":
                    raise BatchExists(batch=batch.id, status=found.info.status)
                row = await self._head(batch.id)
                return Receipt(batch.id, row.revision, found.info.records, repeated=True)
            info = structs.replace(head.info, groups=groups)
            tx.put(head_key(batch.id), Head(info, head.digest, list(segments)))
            for key, segment in segments.items():
                tx.put(key, segment)
            tasks = {group.task for group in groups}
            for task in tasks - self._tasks:
                tx.put(task_key(task), Known())
        self._tasks |= tasks
        return Receipt(batch.id, tx.revision or 0, len(batch.records), repeated=False)

    @Feedback.rollback.serve
    async def rollback(self, batch: str, reason: str) -> RolledBack:
        if not reason:
            raise BadRequest("Feedback.rollback, $.reason", "why the batch is taken back", "an empty text")
        for _ in range(_ATTEMPTS):
            try:
                return await self._take_back(batch, reason)
            except (Conflict, Aborted):
                continue
        raise Aborted(f"roll-back of {batch!r}", f"others wrote it in each of {_ATTEMPTS} attempts")

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
        found: list[BatchInfo] = []
        start = f"{head_key(after)}\0" if after else head_key("")
        async with closing(self.rows.range(start, "batch0")) as rows:
            async for row in rows:
                info = _told(row)
                if selection == EVERYTHING or may_fit(selection, info):
                    found.append(info)
                if len(found) == limit:
                    break
        return found

    # reading ----------------------------------------------------------------------------------------------

    @Feedback.records.serve
    async def records(self, selection: Selection = EVERYTHING, after: int = 0) -> AsyncIterator[Stored]:
        async with closing(self._selected(selection, await self.rows.state.head())) as found:
            async for stored in found:
                if stored.position > after:
                    yield stored

    @Feedback.training_set.serve
    async def training_set(
        self, task: str, as_of: int | None = None, min_trust: float = 0.0, after: int = 0
    ) -> AsyncIterator[Stored]:
        selection = Selection(task=task, min_trust=min_trust)
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
        as_of: int | None = None,
        min_trust: float = 0.0,
        after: int = 0,
    ) -> AsyncIterator[Pair]:
        if not 1 <= count <= _MOST_PAIRS:
            raise BadRequest("Feedback.draw_pairs, $.count", f"1 to {_MOST_PAIRS}", str(count))
        selection = Selection(task=task, kind="rating", min_trust=min_trust)
        ratings = [
            Rated(record.score, stored.batch, stored.index, record.trust, record.text)
            async for stored in self._selected(selection, await self._moment(as_of))
            if isinstance(record := stored.record, Rating)
        ]
        for pair in Pairs(ratings).draw(seed, count):
            if pair.position > after:
                yield pair

    async def _moment(self, as_of: int | None) -> int:
        return await self.rows.state.head() if as_of is None else as_of

    async def _selected(self, selection: Selection, revision: int) -> AsyncIterator[Stored]:
        """What fits, as of a revision, in the order of the keys (of a batch: of its indexes), numbered
        from 1.
        """
        position = 0
        parts = (
            self._batch_parts(selection.batch, revision)
            if selection.batch
            else self._task_parts(selection, revision)
        )
        async with closing(parts):
            async for part in parts:
                for index, record in zip(part.indexes, part.records, strict=True):
                    if fits(selection, record):
                        position += 1
                        yield Stored(position, part.batch, index, record)

    async def _task_parts(self, selection: Selection, revision: int) -> AsyncIterator[Segment]:
        for prefix in prefixes(selection, sorted(self._tasks)):
            async with closing(self.rows.range(prefix, prefix[:-1] + "0", as_of=revision)) as rows:
                async for row in rows:
                    if isinstance(row.value, Segment):
                        yield row.value

    async def _batch_parts(self, batch: str, revision: int) -> AsyncIterator[Segment]:
        """The whole batch as one segment, in its own order."""
        head = await self.rows.get(head_key(batch), as_of=revision)
        if not isinstance(head, Head):
            raise NoSuchBatch(batch=batch)
        if head.info.status == "rolled back":
            return
        parts = [await self.rows.get(key, as_of=revision) for key in head.segments]
        held = [
            pair
            for part in parts
            if isinstance(part, Segment)
            for pair in zip(part.indexes, part.records, strict=True)
        ]
        held.sort(key=lambda pair: pair[0])
        yield Segment(batch, [index for index, _ in held], [record for _, record in held])

    @Feedback.agreement.serve
    async def agreement(self, task: str, as_of: int | None = None) -> Agreement:
        judgements = Judgements(task)
        async for stored in self._selected(Selection(task=task), await self._moment(as_of)):
            judgements.add(stored.record)
        return judgements.result()

    @Feedback.statistics.serve
    async def statistics(self) -> Statistics:
        """From the heads alone: one row a batch."""
        tasks = {task: TaskCount(task, {}, [0] * BANDS) for task in sorted(self._tasks)}
        batches = rolled_back = records = 0
        revision = await self.rows.state.head()
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
        return Statistics(batches, rolled_back, records, list(tasks.values()), revision)


def closing(rows: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """A generator that may be left before its end is closed then and there, not by the garbage collector."""
    assert isinstance(rows, AsyncGenerator)
    return aclosing(rows)


def _told(row: StoreRow[Row]) -> BatchInfo:
    assert isinstance(row.value, Head), f"{row.key} holds no head of a batch"
    return structs.replace(row.value.info, revision=row.revision)
