"""Intents: what the kernel is about to do outside the database, written down before it is done.

A process, a cgroup, a mount cannot be part of a transaction. So the kernel first commits an intent row that
says how to undo the effect, then acts, then commits the outcome together with the rows the effect is about. A
crash leaves at most an intent without an outcome; boot undoes those, newest first, and every undo must
therefore bear an effect that never happened, happened half, or was undone before.

While the store does not serve (boot, restart of `state`) the same rows go to the boot journal.
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec
from msgspec import Struct

from .changes import Batch, Records, load
from .records import IntentRow


class EndProcess(Struct, frozen=True, tag=True):
    """A process was to be started for a server. Its pid is not known beforehand: whatever carries the mark is
    it.
    """

    server: str
    process: int
    mark: str
    """The value of `ATOLL_PROCESS` in its environment."""


AnyUndo = EndProcess
"""How to undo an effect: what it needs, and nothing that may have changed meanwhile. A process is the one thing that
the kernel makes and the database cannot undo: control groups, mounts and memory go with those they were made for, and an
unfinished copy of a package is told by its name."""
_decoder = msgspec.msgpack.Decoder(AnyUndo)

DONE = "done"
UNDONE = "undone"
FAILED = "failed"
"""The effect did not come about; the kernel lived to say so."""


def intend(boot: int, number: int, undo: AnyUndo, time: int) -> IntentRow:
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


def undo_of(intent: IntentRow) -> AnyUndo:
    """Raises `msgspec.ValidationError` for a kind that this release does not know."""
    undo: AnyUndo = _decoder.decode(intent.undo)
    return undo


def without_outcome(rows: Iterable[IntentRow]) -> list[IntentRow]:
    """What a boot has to undo, in the order in which to undo it: the latest effect first."""
    return sorted((row for row in rows if not row.outcome), key=lambda row: row.id, reverse=True)


async def unfinished(records: Records) -> list[IntentRow]:
    """`without_outcome` of the store's rows."""
    return without_outcome(await load(records, IntentRow))


async def undo_all(
    records: Records, undo: Callable[[AnyUndo], Awaitable[None]], waiting: Iterable[IntentRow] = ()
) -> int:
    """At boot: undoes what has no outcome, one by one, and commits each outcome before the next. `waiting`
    are intents that are still in the boot journal. A crash in between undoes one of them twice, which `undo`
    must bear."""
    rows = {row.id: row for row in waiting}
    rows |= {row.id: row for row in await load(records, IntentRow)}
    unfinished = without_outcome(rows.values())
    for intent in unfinished:
        await undo(undo_of(intent))
        batch = settle(Batch(b"undo %d" % intent.id, note=f"undo intent {intent.id}"), intent, UNDONE)
        await records.commit(batch.changes())
    return len(unfinished)
