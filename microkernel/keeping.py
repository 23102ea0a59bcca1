"""For how long rows of the kernel's tables are kept: when what each tells of was over, and by which key of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from atoll.ipc.system.records import (
    AttachmentRow,
    ChannelRow,
    CrashRow,
    EventRow,
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
    over: Callable[[Any], int | None]
    """When what a row tells of was over, in ns; None: it still is."""
    next: Callable[[Any], bytes] = lambda row: b""
    """Where in the table to go on behind a row that is young enough, since what follows is younger; empty: nowhere."""


def tables(keep: Keep, boot: int) -> tuple[Kept, ...]:
    """`boot`: the one that runs. What an earlier one left open ended with it, some time after it began."""

    def earlier(row: Any, time: int) -> int | None:
        return None if row.boot == boot else time

    return (
        Kept(EventRow, keep.events, lambda row: row.time),
        Kept(RefusalRow, keep.refusals, lambda row: earlier(row, row.last)),
        Kept(CrashRow, keep.crashes, lambda row: row.time, lambda row: after(CrashRow.key_of(row.server))),
        Kept(SwapRow, keep.swaps, lambda row: row.ended),
        Kept(ProcessRow, keep.processes, lambda row: row.ended or earlier(row, row.started)),
        Kept(ChannelRow, keep.channels, lambda row: row.closed or earlier(row, row.opened)),
        Kept(AttachmentRow, keep.attachments, lambda row: row.ended or earlier(row, row.time)),
        Kept(SessionRow, keep.sessions, lambda row: earlier(row, row.time)),
    )
