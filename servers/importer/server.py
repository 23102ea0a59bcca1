"""The importer: a workflow that goes through a file of batches, eight a step.

Feedback takes a batch once by its id and records, so a step that is run again after a crash submits again and changes
nothing. What it counts is the same then, too: a receipt says in which revision its batch was stored, and what the import
stored itself is what came after all that it had seen before the step.
"""

from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import NamedTuple

import msgspec
from msgspec import structs

from atoll.ipc.context import current
from atoll.ipc.durable import Retry, Workflow
from atoll.ipc.errors import AtollError, TooLarge
from atoll.ipc.future import Future
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves
from atoll.servers.feedback.interface import Batch, BatchExists, Feedback, Invalid, Receipt
from atoll.servers.storage.interface import BlobRef, Piece, Storage

from .interface import Imported, Importer, Left
from .lines import Line, lines

OWNER = "import"
"""Under which files are referred to in storage while they are imported; the name is the workflow's."""
PART = 8
"""Batches of a step."""
LONGEST = 4 * 1024 * 1024
"""Bytes of a line: more than a batch has that fits into one message."""
PATIENT = Retry(attempts=200)
"""An import waits some three hours for a server that is down, and then fails."""

_batch = msgspec.json.Decoder(Batch).decode


class Part(Imported, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a step's batches."""

    place: int
    """In the file, where the next step begins."""


class Sent(NamedTuple):
    """A batch on its way."""

    place: int
    batch: str
    receipt: Future[Receipt]


class Server(Serves[Importer]):
    rows: Keyspace[int]
    """Holds the workflows and nothing else."""
    storage: Storage
    feedback: Feedback

    workflows_kept = 90 * 86400.0

    @Importer.bring_in.serve
    async def bring_in(self, flow: Workflow, file: BlobRef) -> Imported:
        flow = flow.with_(retry=PATIENT)
        name = f"{current().badge:x}/{flow.id}"
        held = await flow.step(self.storage.refer, [file.hash], OWNER, name, [file.size])
        done, place = Imported(revision=held), 0
        try:
            while place < file.size:
                part = await flow.step(self.part, file, place, done.revision)
                done, place = done.and_then(part), part.place
        except AtollError:  # it has failed for good; one that is cancelled may be resumed, and keeps its file
            await flow.step(self.storage.release, OWNER, name)
            raise
        await flow.step(self.storage.release, OWNER, name)
        return done

    async def part(self, file: BlobRef, place: int, since: int) -> Part:
        """Submit the next batches, those of one step beside each other. `since`: what was stored later was stored by this
        step, whichever attempt of it."""
        async with self.storage.get(file.hash, place) as pieces:
            batches, left, place = await following(pieces, place)
        done = Imported(left=left, refused=len(left))
        sent = list[Sent]()
        try:
            for at, batch in batches:
                try:
                    sent.append(Sent(at, batch.id, self.feedback.submit.start(batch)))
                except TooLarge as large:
                    expected = f"a batch that is a message of {large.limit} bytes at most - at `$`"
                    done = done.and_then(refused(at, expected))
                except OverflowError:  # JSON has numbers that no message has
                    expected = "a batch with whole numbers of 64 bits at most - at `$`"
                    done = done.and_then(refused(at, expected))
            for each in sent:
                done = done.and_then(await outcome(each, since))
        finally:
            for each in sent:
                each.receipt.cancel()
        done = structs.replace(done, left=sorted(done.left, key=lambda each: each.place))
        return Part(place=place, **structs.asdict(done))


Found = tuple[int, Batch]
"""A batch, and the place of its line."""


async def following(pieces: AsyncIterable[Piece], place: int) -> tuple[list[Found], list[Left], int]:
    """The batches of a step, lines that are none, and where the next step begins. An id that comes again is the next step's:
    of two batches that are submitted beside each other nobody knows which is the first."""
    batches, left = dict[str, Found](), list[Left]()
    async with aclosing(lines(pieces, place, LONGEST)) as found:
        async for line in found:
            batch = read(line)
            if isinstance(batch, Batch) and batch.id in batches:
                break
            place = line.end
            if isinstance(batch, Left):
                left.append(batch)
            elif batch is not None:
                batches[batch.id] = line.place, batch
            if len(batches) + len(left) == PART:
                break
    return list(batches.values()), left, place


def read(line: Line) -> Batch | Left | None:
    """None: the line is empty."""
    if line.content is None:
        return no_batch(line.place, f"a line of {LONGEST} bytes at most")
    if not line.content.strip():
        return None
    try:
        return _batch(line.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # What it found there may be what somebody wrote: that has no business in a row.
        _, there, where = str(error).rpartition(" - at ")
        return no_batch(line.place, f"a batch as JSON - at {where if there else '`$`'}")


async def outcome(sent: Sent, since: int) -> Imported:
    try:
        receipt = await sent.receipt
    except BatchExists as exists:
        if exists.status == "rolled back":
            return Imported(taken_back=1, left=[Left(sent.place, sent.batch, "taken back")])
        return refused(
            sent.place, "another id, or the records of the batch that has it - at `$.id`", sent.batch
        )
    except Invalid as wrong:
        where = f"records[{wrong.index}].{wrong.field}" if wrong.index >= 0 else wrong.field
        # An id that is no name may be a text as well.
        return refused(sent.place, f"{wrong.expected} - at `$.{where}`", "" if where == "id" else sent.batch)
    if receipt.revision <= since:
        return Imported(before=1)
    return Imported(taken=1, records=receipt.records, revision=receipt.revision)


def no_batch(place: int, expected: str, id: str = "") -> Left:
    return Left(place, id, "refused", f"expected {expected}")


def refused(place: int, expected: str, id: str = "") -> Imported:
    return Imported(refused=1, left=[no_batch(place, expected, id)])
