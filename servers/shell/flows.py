"""Commands on workflows: `atoll flow ls`, `show`, `cancel`, `resume`, `fork`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer

from atoll.ipc import errors
from atoll.ipc.attach import connect
from atoll.ipc.durable import administration
from atoll.ipc.durable.rows import StepRow, WorkflowRow
from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system.records import written_by_the_node
from atoll.ipc.system.state import AsOf, State

from . import printing
from .options import At, Json, Node, keyspace_names
from .printing import Column
from .rows import value_of, value_text
from .when import clock, moment

SomeKeyspace = Annotated[
    str,
    typer.Option(
        "--in",
        metavar="KEYSPACE",
        help="Only in the keyspace of this name.",
        autocompletion=keyspace_names,
        show_default="all keyspaces",
    ),
]
Id = Annotated[str, typer.Argument(help="A workflow's id, as `atoll flow ls` prints it.")]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A workflow and where it lies."""

    keyspace: str
    id: str
    """With the badge before it (`2a/order-17`) where that is not 0."""
    method: str
    status: str
    begun: float
    ended: float
    queue: str
    version: str
    reason: str
    forked: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A step as it is printed."""

    step: int
    name: str
    state: str
    attempts: int
    ended: float
    result: object


def when(seconds: float) -> str:
    """A time as it is printed: also one of no calendar, since whoever writes the row may write any."""
    try:
        return clock(int(seconds * 1e9)) if seconds else "-"
    except (ValueError, OverflowError):
        return f"{seconds:g} s"


FOUND: list[Column[Found]] = [
    Column("KEYSPACE", lambda row: row.keyspace),
    Column("ID", lambda row: row.id, fold=True),
    Column("METHOD", lambda row: row.method),
    Column("STATUS", lambda row: row.status),
    Column("QUEUE", lambda row: row.queue or "-", spare=1),
    Column("BEGUN", lambda row: when(row.begun), spare=2),
    Column("ENDED", lambda row: when(row.ended), spare=3),
    Column("WHY", lambda row: row.reason or "-", fold=True),
]

STEPS: list[Column[Told]] = [
    Column("STEP", lambda row: row.step, right=True),
    Column("NAME", lambda row: row.name),
    Column("STATE", lambda row: row.state),
    Column("ATTEMPTS", lambda row: row.attempts, right=True, spare=1),
    Column("ENDED", lambda row: when(row.ended), spare=2),
    Column("RESULT", lambda row: value_text(row.result), cut=True),
]


def found(keyspace: str, row: WorkflowRow) -> Found:
    return Found(
        keyspace=keyspace,
        id=row.name if row.badge else row.id,
        method=row.method,
        status=row.status,
        begun=row.begun,
        ended=row.ended,
        queue=row.queue,
        version=row.version,
        reason=row.reason or (error(row.fault) if row.fault is not None else ""),
        forked=row.forked,
    )


def listed(keyspace: str, state: State, *, ended: bool, at: AsOf) -> Iterator[Found]:
    """The workflows of a keyspace. One with a row that is none says so, and hides no other keyspace's."""
    try:
        yield from [found(keyspace, row) for row in administration.workflows(state, ended=ended, as_of=at)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield Found(
            keyspace=keyspace, id="-", method="-", status="unreadable", begun=0.0, ended=0.0, queue="", version="",
            reason=f"a row there is no workflow's: {error}", forked="",
        )  # fmt: skip


def told(number: int, step: StepRow) -> Told:
    result = value_of(step.reply) if step.fault is None else error(step.fault)
    return Told(
        step=number,
        name=step.name,
        state=step.state,
        attempts=step.attempts,
        ended=step.ended,
        result=f"until {when(step.until)}" if step.state == "sleeping" else result,
    )


def error(fault: bytes) -> str:
    """An error's sentence; one that only its server's package knows speaks for itself."""
    found = errors.decode(fault)
    return found.text if isinstance(found, errors.UnknownFailure) else str(found)


@contextmanager
def places(keyspace: str, node: str) -> Iterator[dict[str, State]]:
    """Where workflows may lie, by the keyspace's name."""
    with connect(node=node or None) as attached:
        servers = [name for name in attached.kernel.keyspaces.now() if not written_by_the_node(name)]
        names = [keyspace] if keyspace else servers
        yield {name: attached.keyspace(name) for name in names}


def place(states: dict[str, State], id: str, when: AsOf = None) -> tuple[str, State, WorkflowRow]:
    """Where the workflow lies, or lay. Raises `NotFound`, or `BadRequest` if there are several."""
    there = [
        (name, state, row) for name, state in states.items() if (row := administration.find(state, id, when))
    ]
    if not there:
        known = [row.id for name, state in states.items() for row in listed(name, state, ended=True, at=when)]
        raise NotFound.among("workflow", id, known)
    if len(there) > 1:
        names = ", ".join(name for name, _, _ in there)
        raise BadRequest(
            f"workflow {id!r}", "one of that id", f"one in each of {names}: name the keyspace (--in)"
        )
    return there[0]


def ls(
    keyspace: SomeKeyspace = "",
    all_: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    at: At = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Print the workflows that have not ended, or had not, and why one does not go on."""
    when = moment(at)
    with places(keyspace, node) as states:
        rows = [row for name, state in states.items() for row in listed(name, state, ended=all_, at=when)]
    rows.sort(key=lambda row: row.begun)
    printing.rows(rows, FOUND, as_json, "no workflows" if all_ else "no workflow that has not ended")


def show(id: Id, keyspace: SomeKeyspace = "", at: At = "", node: Node = "", as_json: Json = False) -> None:
    """Print a workflow and what is recorded of its steps, or was."""
    when = moment(at)
    with places(keyspace, node) as states:
        name, state, row = place(states, id, when)
        steps = [told(*each) for each in administration.steps(state, row.name, when)]
    head = found(name, row)
    if as_json:
        print(printing.json({**printing.plain(head), "steps": steps}))  # type: ignore[dict-item]
        return
    printing.draw([head], FOUND)
    printing.say(
        f"begun by version {row.version or '(any)'}" + (f", forked from {row.forked}" if row.forked else "")
    )
    printing.rows(steps, STEPS, False, "no step is recorded")


def cancel(id: Id, keyspace: SomeKeyspace = "", node: Node = "", as_json: Json = False) -> None:
    """End a workflow where it is: no further step is run or committed."""
    with places(keyspace, node) as states:
        name, state, row = place(states, id)
        ended = administration.cancel(state, row.name)
    printing.answer(found(name, ended), f"{id}: {ended.status}", as_json)


def resume(id: Id, keyspace: SomeKeyspace = "", node: Node = "", as_json: Json = False) -> None:
    """Go on with a workflow that was cancelled, waits for a version or is parked, under the version that runs."""
    with places(keyspace, node) as states:
        name, state, row = place(states, id)
        again = administration.resume(state, row.name)
    printing.answer(found(name, again), f"{id}: goes on", as_json)


def fork(
    id: Id,
    step: Annotated[
        int, typer.Argument(help="The first step that is run anew; those before keep their results.", min=1)
    ],
    new: Annotated[
        str, typer.Option("--id", help="The new workflow's id.", show_default="ID-fork-STEP")
    ] = "",
    keyspace: SomeKeyspace = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Begin a workflow with another one's first steps, which goes on at a step under the version that runs."""
    with places(keyspace, node) as states:
        name, state, row = place(states, id)
        forked = administration.fork(state, row.name, step, new or f"{row.id}-fork-{step}")
    printing.answer(found(name, forked), f"{forked.id}: begun, from {forked.forked}", as_json)
