"""What a person does to workflows: writes of their rows, made with the right to the keyspace that they lie in.

Their server is not asked. It learns of each write by the feed, and if it is down, at its next start.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from atoll.ipc import chance, clock
from atoll.ipc.errors import BadRequest, Conflict, NotFound
from atoll.ipc.system.state import AsOf, Expect, Item, Range, State, Write

from .execution import ending
from .rows import (
    ENDED,
    StepRow,
    WorkflowRow,
    done_key,
    encode,
    name_of,
    named,
    number_in,
    open_key,
    spans,
    step_key,
    step_of,
    steps_between,
    unique_key,
    workflow_of,
)

PAGE: Final = 1000
_RESUMED: Final = frozenset({"cancelled", "waiting", "parked"})


def workflows(state: State, *, ended: bool, as_of: AsOf = None) -> Iterator[WorkflowRow]:
    """Those that have not ended; with `ended` the others as well. One that ends meanwhile has."""
    found: dict[str, WorkflowRow] = {}
    at = _revision(state, as_of)
    for start, end in spans(ended=ended):
        for item in _items(state, start, end, at):
            row = workflow_of(item.value or b"")
            found[row.name] = row
    yield from found.values()


def find(state: State, name: str, as_of: AsOf = None) -> WorkflowRow | None:
    """A workflow by its name, or by its id where the badge is 0."""
    known = name if "/" in name else name_of(0, name)
    found = _row(state, known, as_of) or _row(state, name_of(0, name), as_of)
    return None if found is None else found[0]


def steps(state: State, name: str, as_of: AsOf = None) -> list[tuple[int, StepRow]]:
    """What is recorded of a workflow's steps, in their order."""
    items = _items(state, *steps_between(name), _revision(state, as_of))
    return [(number_in(item.key), step_of(item.value or b"")) for item in items]


def cancel(state: State, name: str) -> WorkflowRow:
    """End it where it is. One that has ended stays as it is."""
    while True:
        row, revision = _known(state, name)
        if row.status in ENDED:
            return row
        ended, writes = ending(row, "cancelled", clock.wall(), b"")
        if _commit(state, writes, [Expect(open_key(name), revision)], f"{row.method} {row.id}, cancelled"):
            return ended


def resume(state: State, name: str) -> WorkflowRow:
    """Go on with one that was cancelled, or waits for a version, or is parked: at the step that has not committed, under
    whichever version runs, and when its queue lets it. Raises `BadRequest` for any other, and where another has its
    deduplication key by now."""
    while True:
        row, revision = _known(state, name)
        if row.status not in _RESUMED:
            what = "runs" if row.status not in ENDED else f"has {row.status}; `atoll flow fork` repeats it"
            raise BadRequest(
                f"workflow {row.id!r}", "one that was cancelled, waits or is parked", f"one that {what}"
            )
        ended = row.status in ENDED
        before = done_key(name) if ended else open_key(name)
        again = msgspec.structs.replace(
            row,
            status="queued" if row.queue else "running",
            reason="",
            version="",
            executor=b"",
            runs=1,
            ended=0.0,
        )
        writes = [Write(open_key(name), encode(again))]
        expects: list[Expect | Range] = [Expect(before, revision)]
        if ended:
            writes.append(Write(before))
        if ended and row.deduplication:
            key = unique_key(row)
            writes.append(Write(key, name.encode()))
            expects.append(Expect(key, 0))
        if _commit(state, writes, expects, f"{row.method} {row.id}, resumed"):
            return again
        holder = state.get.now(unique_key(row)) if row.deduplication else None
        if holder is not None and holder.value not in (None, name.encode()):
            raise BadRequest(
                f"workflow {row.id!r}",
                f"no other workflow with the deduplication key {row.deduplication!r}",
                "one that has not ended",
            )


def fork(state: State, name: str, step: int, id: str) -> WorkflowRow:
    """Begin another workflow that has done what this one had before a step, and goes on there, under whichever version
    runs. Its keys are its own: what it does from there on is done anew. All or nothing."""
    row, _ = _known(state, name)
    if not row.arguments:
        raise BadRequest(
            f"fork of workflow {row.id!r}", "one whose arguments are kept", "one too large to keep them"
        )
    over = [(number, each) for number, each in steps(state, name) if each.state != "trying"]
    if not 1 <= step <= len(over) + 1:
        raise BadRequest(f"fork of workflow {row.id!r}", f"a step of 1 to {len(over) + 1}", str(step))
    copied = over[: step - 1]
    forked = msgspec.structs.replace(
        row,
        id=named("fork: id", id),
        status="queued" if row.queue else "running",
        version="",
        token=chance.token(16),
        executor=b"",
        runs=1,
        due=0.0,
        deduplication="",
        started=0.0,
        ended=0.0,
        reason="",
        reply=None,
        fault=None,
        forked=f"{row.id}, step {step}",
    )
    writes = [Write(open_key(forked.name), encode(forked))]
    writes += [Write(step_key(forked.name, number), encode(each)) for number, each in copied]
    expects: list[Expect | Range] = [Expect(open_key(forked.name), 0), Expect(done_key(forked.name), 0)]
    if not _commit(state, writes, expects, f"{row.method} {forked.id}, forked from {forked.forked}"):
        raise BadRequest("fork: id", "an id that is free", repr(id))
    return forked


def _revision(state: State, as_of: AsOf) -> int | None:
    """A moment as a revision: a time may stand for a later one when the next page is asked for."""
    return state.revision_at.now(as_of) if isinstance(as_of, float) else as_of


def _items(state: State, start: bytes, end: bytes, as_of: int | None) -> Iterator[Item]:
    while True:
        page = state.range.now(start, end, PAGE, as_of)
        yield from page.items
        if not page.more:
            return
        start = page.items[-1].key + b"\0"


def _row(state: State, name: str, as_of: AsOf = None) -> tuple[WorkflowRow, int] | None:
    # It may go from the one place to the other between two looks, in both directions.
    for key in (open_key(name), done_key(name), open_key(name)):
        item = state.get.now(key, as_of)
        if item is not None and item.value is not None:
            return workflow_of(item.value), item.revision
    return None


def _known(state: State, name: str) -> tuple[WorkflowRow, int]:
    found = _row(state, name)
    if found is None:
        raise NotFound("workflow", name, see="atoll flow ls")
    return found


def _commit(state: State, writes: list[Write], expects: list[Expect | Range], note: str) -> bool:
    """Whether it was as expected. A store that dies over it is sent it again: by its id it is known, and not refused."""
    try:
        state.commit.now(writes, expects, chance.token(16), note=note)
    except Conflict:
        return False
    return True
