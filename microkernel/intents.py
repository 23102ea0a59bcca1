"""Intents: what the kernel is about to do outside the database, written down before it is done.

A process cannot be part of a transaction. So the kernel first commits an intent row that says what it will start, then
starts it, then commits the outcome together with the rows of the process. A crash leaves at most an intent without an
outcome, and perhaps the process: the next boot ends whatever is left of the node (`remains`) before it reads any row, and
then says of each such intent that it was undone.

While the store does not serve (boot, restart of `state`) the same rows go to the boot journal.
"""

from collections.abc import Collection, Iterable, Iterator

import msgspec
from msgspec import Struct

from atoll.ipc.system.records import IntentRow, ProcessRow

from .changes import Batch, Records, load


class EndProcess(Struct, frozen=True, tag=True):
    """A process was to be started for a server. Its pid is not known beforehand: whatever carries the mark is
    it. The one thing that the kernel makes and the database cannot undo: control groups, mounts and memory go with those
    they were made for, and an unfinished copy of a package is told by its name.
    """

    server: str
    process: int
    mark: str
    """The value of `ATOLL_PROCESS` in its environment."""


_decoder = msgspec.msgpack.Decoder(EndProcess)

DONE = "done"
UNDONE = "undone"
FAILED = "failed"
"""The effect did not come about; the kernel lived to say so."""


def intend(boot: int, number: int, undo: EndProcess, time: int) -> IntentRow:
    """The row to commit before the effect. `number` counts the boot's intents, so that ids rise over all
    boots.
    """
    return IntentRow(
        id=(boot << 32) + number,
        boot=boot,
        kind=type(undo).__name__,
        undo=msgspec.msgpack.encode(undo),
        time=time,
    )


def settle(batch: Batch, intent: IntentRow, outcome: str = DONE) -> Batch:
    """Adds the outcome to the batch that holds the rows of the effect."""
    return batch.put(msgspec.structs.replace(intent, outcome=outcome))


async def settle_left(records: Records, boot: int, batch: Batch) -> None:
    """At a boot, when nothing of the last one is left: adds the outcome of each intent that an earlier boot left without
    one. Raises `msgspec.ValidationError` for a kind that this release does not know: it may not be undone."""
    for intent in await load(records, IntentRow):
        if not intent.outcome and intent.boot < boot:
            _decoder.decode(intent.undo)
            settle(batch, intent, UNDONE)


def starts(intent: IntentRow, mark: str) -> bool:
    """Whether it says that the process with this mark is about to be started, and not yet what came of it."""
    return not intent.outcome and _decoder.decode(intent.undo).mark == mark


def check(
    intents: Iterable[IntentRow], processes: Iterable[ProcessRow], boots: Collection[int]
) -> Iterator[str]:
    """What must hold of the rows at every moment, as sentences about those of which it does not. `boots`: those that got
    as far as a row of theirs. Rows that were deleted for their age are missed."""
    rows = {(row.boot, row.process): row for row in processes}
    newest = max(boots, default=0)
    started = set()
    for intent in intents:
        undo = _decoder.decode(intent.undo)
        of = (intent.boot, undo.process)
        started.add(of)
        if intent.id != (intent.boot << 32) + undo.process or undo.mark != f"{intent.boot}-{undo.process}":
            yield f"intent {intent.id:#x} is of process {undo.process}, marked {undo.mark}"
        if intent.outcome == DONE and (of not in rows or rows[of].server != undo.server):
            yield f"intent {intent.id:#x} is settled, and no row says that {undo.server} was started"
        if intent.outcome == FAILED and of in rows:
            yield f"intent {intent.id:#x} came to nothing, and a row says that {undo.server} was started"
        if not intent.outcome and intent.boot < newest:
            yield f"intent {intent.id:#x} of boot {intent.boot} is open in boot {newest}"
    yield from (f"process {process} of boot {boot} has no intent" for boot, process in rows.keys() - started)


def kept(before: IntentRow, now: IntentRow) -> bool:
    """Whether one row may follow the other: what came of a start is said once."""
    return before.outcome in ("", now.outcome)
