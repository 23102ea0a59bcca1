"""`atoll calls`: which calls servers answered, as far as their image has them recorded."""

from typing import Annotated

import typer
from msgspec import Struct

from atoll.ipc import context, errors
from atoll.ipc.attach import connect
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.calls import Recorded

from . import printing
from .options import Json, Node, SomeServer
from .printing import Column
from .recorded import Process, Records
from .travel import client
from .when import clock, moment


class CallRow(Struct, frozen=True, kw_only=True):
    """A call that a server was given."""

    id: str
    server: str
    method: str
    client: str
    """Who made it: a server, or a program that was attached."""
    badge: int
    trace: int
    time: int
    duration: int | None
    """Nanoseconds; None: it was not answered."""
    outcome: str
    """`replied`, `failed`, `cast` (nobody waited for an answer) or `none`."""
    error: str
    size: int
    """Bytes of its arguments."""
    reply_size: int
    recorded: bool
    """With its arguments, so that it can be replayed."""
    version: str


COLUMNS: list[Column[CallRow]] = [
    Column("CALL", lambda row: row.id),
    Column("TIME", lambda row: clock(row.time)),
    Column("METHOD", lambda row: row.method),
    Column("CLIENT", lambda row: row.client or "-", spare=1),
    Column("BADGE", lambda row: f"{row.badge:x}" if row.badge else "-", right=True, spare=3),
    Column("TRACE", lambda row: f"{row.trace:x}" if row.trace else "-", right=True, spare=2),
    Column("MS", lambda row: "-" if row.duration is None else f"{row.duration / 1e6:.3f}", right=True),
    Column(
        "OUTCOME", lambda row: row.error or ("no answer" if row.outcome == "none" else row.outcome), fold=True
    ),
]


def trace_of(call: Recorded) -> int:
    """The caller's, or what the server took for one."""
    return call.trace or context.trace_of(call.channel, call.request)


def row_of(records: Records, process: Process, call: Recorded) -> CallRow:
    error = ""
    if call.failed and call.reply is not None:
        error = str(errors.decode(call.reply))
    return CallRow(
        id=call.id, server=process.opening.server, method=process.method(call), client=records.client(call, client),
        badge=call.badge, trace=trace_of(call), time=call.time,
        # Both times are of a clock that may be set back in between.
        duration=max(0, call.answered - call.time) if call.answered else None, outcome=call.outcome, error=error,
        size=call.size, reply_size=call.reply_size, recorded=call.arguments is not None,
        version=process.opening.version,
    )  # fmt: skip


def calls(
    server: SomeServer = "",
    first: Annotated[
        str,
        typer.Option("--from", metavar="WHEN", help="A time or an age (10m).", show_default="the beginning"),
    ] = "",
    last: Annotated[
        str, typer.Option("--to", metavar="WHEN", help="A time or an age (10m).", show_default="now")
    ] = "",
    method: Annotated[str, typer.Option("--method", help="Only this one: Counter.add, or add.")] = "",
    who: Annotated[str, typer.Option("--client", help="Only who has this in its name.")] = "",
    trace: Annotated[str, typer.Option("--trace", help="Only this trace, as `atoll calls` prints it.")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="Only those without a reply.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", help="At most so many of each server, the last ones.", min=1)
    ] = 50,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """List calls that servers recorded, the last one first: what an image says of them is in `record` and `audit`."""
    since, until = time_of("--from", first), time_of("--to", last)
    with connect(node=node or None) as attached:
        records = Records(attached)

        def wanted(process: Process, call: Recorded) -> bool:
            label = process.method(call)
            return (
                (not until or call.time <= until)
                and (not failed or call.outcome in ("failed", "none"))
                and (not method or method in (label, label.partition(".")[2]))
                and (not trace or f"{trace_of(call):x}" == trace.lower())
                and (not who or who in records.client(call, client))
            )

        found = [
            row_of(records, process, call)
            for each in ([server] if server else records.servers())
            for process, call in records.last(each, limit, wanted, since)
        ]
        dropped = {each: records.dropped(each) for each in ([server] if server else records.servers())}
    found.sort(key=lambda row: row.time, reverse=True)
    printing.rows(found, COLUMNS, as_json, "no calls: no image has them recorded, or nobody made any")
    for name, count in dropped.items():
        if count and not as_json:
            printing.say(f"{name}: {count:,} calls of its last process came too fast to be recorded")


def time_of(option: str, text: str) -> int:
    """A moment in ns; 0: none was given."""
    when = moment(text, option)
    if isinstance(when, int):
        raise BadRequest(where=option, expected="a time (2026-05-01T12:00) or an age (10m)", got="a revision")
    return 0 if when is None else int(when * 1e9)
