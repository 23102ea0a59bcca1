"""For how long rows of the kernel's tables are kept: when what each tells of was over, and by which key of the image."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from atoll.ipc.system.records import (
    AttachmentRow,
    ChannelRow,
    CrashRow,
    EventRow,
    IntentRow,
    ProcessRow,
    RefusalRow,
    Row,
    SessionRow,
    SwapRow,
    after,
)

from .image import Keep


class Kept(NamedTuple):
    """A table whose rows are deleted some day. The others tell of what is, or are as few as there were boots, images and
    versions."""

    table: type[Row]
    age: float
    """Seconds."""
    began: Callable[[Any], int]
    """When what a row tells of began, in ns: what follows in the table began no earlier. 0 where that is not its order."""
    over: Callable[[Any], int | None]
    """When it was over; None: it still is."""
    next: Callable[[Any], bytes] = lambda row: b""
    """Where in the table to go on behind a row of what began late enough to stay; empty: nowhere."""


def tables(keep: Keep, boot: int) -> tuple[Kept, ...]:
    """`boot`: the one that runs. What an earlier one left open ended with it, some time after it began."""

    def earlier(row: Any, time: int) -> int | None:
        return None if row.boot == boot else time

    def next_server(row: CrashRow) -> bytes:
        return after(CrashRow.key_of(row.server))

    time, began, started, opened = map(attrgetter, ("time", "began", "started", "opened"))
    return (
        Kept(EventRow, keep.events, time, time),
        Kept(RefusalRow, keep.refusals, lambda row: 0, lambda row: earlier(row, row.last)),
        Kept(CrashRow, keep.crashes, time, time, next_server),
        Kept(SwapRow, keep.swaps, began, attrgetter("ended")),
        Kept(ProcessRow, keep.processes, started, lambda row: row.ended or earlier(row, row.started)),
        Kept(IntentRow, keep.processes, time, lambda row: row.time if row.outcome else None),
        Kept(ChannelRow, keep.channels, opened, lambda row: row.closed or earlier(row, row.opened)),
        Kept(AttachmentRow, keep.attachments, time, lambda row: row.ended or earlier(row, row.time)),
        Kept(SessionRow, keep.sessions, time, lambda row: earlier(row, row.time)),
    )
