"""Commands that compare moments and go back to one: diff, blame, rollback."""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Annotated, Literal

import msgspec
import typer

from atoll.ipc.attach import connect
from atoll.ipc.errors import AtollError, BadRequest, NotFound
from atoll.ipc.local_view import RESERVED
from atoll.ipc.system import records
from atoll.ipc.system.keys import SERVER as KEYS
from atoll.ipc.system.records import (
    LOG,
    AttachmentRow,
    BootRow,
    ChannelRow,
    LogRow,
    after,
    name_of,
    table_of,
    written_by_the_node,
)
from atoll.ipc.system.state import Committed, Compacted, Item, Range, State, Write

from . import printing
from .differences import Difference, differences
from .options import Json, Key, Keyspace, Node, SomeKeyspace
from .printing import Column
from .rows import Limit, absent, key_of, latest, pages, revision, told_value, value_of, value_text
from .when import clock, moment

KERNEL = records.KEYSPACE

PATIENCE = 60.0
"""Seconds within which a roll-back is told to the store, where it takes more than one message."""
PART = 512 << 10
"""Bytes of keys and values in a message, with `AROUND` bytes more for each."""
AROUND = 16

Prefix = Annotated[str, typer.Option("--keys", metavar="PREFIX", help="Only keys that begin with this.")]
_WHEN = "A revision (1234), a time (2026-05-01T12:00) or an age (10m, 2h, 3d)."


# diff ---------------------------------------------------------------------------------------------------------


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A key that is not the same as of two revisions."""

    keyspace: str
    table: str
    """Of the kernel's keyspace; empty elsewhere."""
    key: str
    before: object
    after: object
    """None: there is no such key, if `change` says so; else such is its value."""
    change: Literal["added", "removed", "replaced"]
    revision: int
    """That wrote what is there afterwards; 0 where nothing is."""
    time: int


def sentence(row: Changed) -> str:
    """What happened to the key."""
    if row.change == "added":
        return f"added {value_text(row.after)}"
    if row.change == "removed":
        return f"removed {value_text(row.before)}"
    if not isinstance(row.before, dict) or not isinstance(row.after, dict):
        return f"{value_text(row.before)} -> {value_text(row.after)}"
    names = [*row.before, *(name for name in row.after if name not in row.before)]
    return "; ".join(
        f"{name}: {printing.json(row.before.get(name))} -> {printing.json(row.after.get(name))}"
        for name in names
        if row.before.get(name) != row.after.get(name)
    )


CHANGED: list[Column[Changed]] = [
    Column("KEYSPACE", lambda row: row.keyspace),
    Column("TABLE", lambda row: row.table or "-", spare=1),
    Column("KEY", lambda row: row.key, fold=True),
    Column("CHANGE", sentence, cut=True),
]


def diff(
    keyspace: SomeKeyspace = "",
    first: Annotated[
        str, typer.Option("--from", metavar="WHEN", help=_WHEN, show_default="the beginning")
    ] = "0",
    last: Annotated[str, typer.Option("--to", metavar="WHEN", help=_WHEN, show_default="now")] = "",
    prefix: Prefix = "",
    table: Annotated[
        str,
        typer.Option("--table", help="Only this table of the kernel's, such as `server` or `capability`."),
    ] = "",
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Print what is not the same as of two moments: keys added, changed and removed, by keyspace and table."""
    if table and keyspace not in ("", KERNEL):
        raise BadRequest(where="--table", expected=f"the keyspace {KERNEL}", got=keyspace)
    if keyspace == LOG or (table and letter_of(table) == LogRow.table):
        raise BadRequest(where="diff", expected="what changes", got="log lines: `atoll log --at` has them")
    start = letter_of(table) if table else key_of(prefix)
    then, now = moment(first, "--from"), moment(last, "--to")
    with connect(node=node or None) as attached:
        names = [KERNEL] if table else [keyspace] if keyspace else of_others(attached.kernel.keyspaces.now())
        found = [
            changed(name, difference)
            for name in names
            for difference in between(
                attached.keyspace(name, ["read", "history"]), start, after(start), then, now
            )
        ]
    printing.rows(found, CHANGED, as_json, "nothing is different")


def of_others(names: list[str]) -> list[str]:
    """Keyspaces in which something changes: those of recorded calls and of log lines only grow."""
    return [name for name in names if name == KERNEL or not written_by_the_node(name)]


def between(
    state: State, start: bytes, end: bytes, first: int | float | None, last: int | float | None
) -> Iterator[Difference]:
    earlier, later = revision(state, first), revision(state, last)
    if earlier > later:
        raise BadRequest(
            where="--from", expected=f"a moment before revision {later}", got=f"revision {earlier}"
        )
    return differences(state, start, end, earlier, later)


def letter_of(table: str) -> bytes:
    names = {name_of(each): each.table for each in records.TABLES}
    if table not in names:
        raise NotFound.among("table", table, names)
    return names[table]


def changed(keyspace: str, difference: Difference) -> Changed:
    now = difference.after
    old, new = (None if item is None else value_of(item.value) for item in difference)
    table, key = "", printing.text(difference.key)
    if keyspace == KERNEL:
        table, key = named(difference.key)
    return Changed(
        keyspace=keyspace, table=table, key=key, before=old, after=new,
        change="added" if difference.before is None else "removed" if now is None else "replaced",
        revision=now.revision if now else 0, time=now.time if now else 0,
    )  # fmt: skip


def named(key: bytes) -> tuple[str, str]:
    """Table and key of one of the kernel's rows, as people write them, also of one that is gone."""
    try:
        table = table_of(key)
        return name_of(table), " ".join(map(str, table.parts_of(key)))
    except (KeyError, ValueError):
        return "", printing.text(key)


# blame --------------------------------------------------------------------------------------------------------


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a key, and whose doing it is."""

    revision: int
    time: int
    by: str
    """Who wrote it: a server, or a program that was attached; empty where it was no call's."""
    asked: str
    """Who made the call that led to it, by the word of whoever wrote; empty where that is who wrote."""
    note: str
    """What the writer said of it; the method, where the SDK did."""
    call: str
    """Of the store, by whoever wrote: channel:request."""
    trace: int
    value: object
    deleted: bool


VERSIONS: list[Column[Version]] = [
    Column("REVISION", lambda row: row.revision, right=True),
    Column("TIME", lambda row: clock(row.time)),
    Column("BY", lambda row: row.by or "-"),
    Column("ASKED BY", lambda row: row.asked or "-", spare=1),
    Column("NOTE", lambda row: row.note or "-", fold=True),
    Column("CALL", lambda row: row.call or "-", spare=3),
    Column("TRACE", lambda row: f"{row.trace:x}" if row.trace else "-", spare=2),
    Column("VALUE", lambda row: told_value(row.value, row.deleted), cut=True),
]


def blame(keyspace: Keyspace, key: Key, limit: Limit = 100, node: Node = "", as_json: Json = False) -> None:
    """Print every version of a key with who made it, on whose call, and when; newest first."""
    raw = key_of(key)
    with connect(node=node or None) as attached:
        state = attached.keyspace(keyspace, ["read", "history"])
        kernel = attached.keyspace(KERNEL, ["read", "history"])
        versions = [version(state, kernel, item) for item in state.history.now(raw, limit)]
        if not versions:
            raise absent(state, f"kept version in {keyspace} of the key", keyspace, key)
    printing.rows(versions, VERSIONS, as_json, "")


def version(state: State, kernel: State, item: Item) -> Version:
    who = state.who.now(item.revision)
    call, trace, note = ("", 0, "") if who is None else (who.call, who.trace, who.note)
    by = asked = ""
    if call:
        boot = boot_at(kernel, item)
        by, asked = (client(kernel, boot, channel) for channel in (int(call.partition(":")[0]), trace >> 40))
    return Version(
        revision=item.revision, time=item.time, by=by, asked="" if asked == by else asked, note=note, call=call,
        trace=trace, value=value_of(item.value), deleted=item.value is None,
    )  # fmt: skip


def boot_at(kernel: State, item: Item) -> int:
    """The boot that a version was made in."""
    start, end = BootRow.table, after(BootRow.table)
    try:
        there = kernel.range.now(start, end, 1, item.revision, reverse=True).items
    except (
        Compacted
    ):  # the kernel keeps less of its past than a keyspace may; the rows of boots are all there
        boots = chain.from_iterable(pages(kernel, start, end))
        there = [each for each in boots if records.decode(BootRow, each.value or b"").started <= item.time][
            -1:
        ]
    return records.decode(BootRow, there[0].value or b"").epoch if there else 1  # it makes its own row


def client(kernel: State, boot: int, channel: int) -> str:
    """Who is the client of a channel. Empty where none has that number: a trace is what its caller says, and a channel is a
    row only soon after it was opened. What is older than the image keeps rows of channels is in their past."""
    found = latest(kernel, ChannelRow.key_of(boot, channel))
    if found is None:
        return ""
    holder = records.decode(ChannelRow, found.value or b"").client
    if not holder.startswith("@"):
        return holder
    row = latest(kernel, AttachmentRow.key_of(boot, int(holder[1:])))
    program = "" if row is None else records.decode(AttachmentRow, row.value or b"").program
    return f"{holder} {program}".rstrip()


# rollback -----------------------------------------------------------------------------------------------------


def rollback(
    keyspace: Keyspace,
    to: Annotated[str, typer.Option("--to", metavar="WHEN", help=_WHEN)],
    prefix: Prefix = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    node: Node = "",
    as_json: Json = False,
) -> None:
    """Write the keys of a keyspace as they were at a moment, as one new transaction: nothing of the past is lost."""
    if keyspace == KEYS or written_by_the_node(keyspace):
        says = "who was purged: that stands" if keyspace == KEYS else "what is: act by commands"
        raise BadRequest(
            where="KEYSPACE", expected="the keyspace of a server", got=f"{keyspace}, whose rows say {says}"
        )
    start, when = key_of(prefix), moment(to, "--to")
    # Workflows are not undone with what they did: whoever wants that says so by their prefix.
    end = after(start) if start else RESERVED
    with connect(node=node or None) as attached:
        state = attached.keyspace(keyspace, ["read", "history", "write"])
        head = state.head.now()
        then = revision(state, when)
        undone = [Difference(now, before) for before, now in between(state, start, end, then, head)]
        told = [changed(keyspace, difference) for difference in undone]
        if dry_run or not undone:
            printing.rows(told, CHANGED, as_json, "nothing is different: there is nothing to roll back")
            return
        writes = [Write(each.key, each.after.value if each.after else None) for each in undone]
        done = committed(state, writes, Range(start, end, head), f"rollback to {then}")
    printing.answer(
        {"revision": done.revision, "to": then, "keys": len(undone)},
        f"{keyspace}: {len(undone)} keys are as they were at revision {then}, since revision {done.revision}",
        as_json,
    )


def committed(state: State, writes: list[Write], expects: Range, note: str) -> Committed:
    """Write all or nothing, in as many messages as it takes. Raises `Conflict`, `TooLarge`, `Aborted`."""
    first, *more = parts(writes)
    if not more:
        return state.commit.now(first, [expects], id=os.urandom(16), note=note)
    transaction = state.begin.now(PATIENCE)
    try:
        state.commit.now(first, [expects], transaction=transaction)
        for part in more:
            state.commit.now(part, transaction=transaction)
        return state.finish.now(transaction, note=note)
    except BaseException:
        with suppress(AtollError):  # what went wrong says more
            state.abort.now(transaction)
        raise


def parts(writes: list[Write]) -> Iterator[list[Write]]:
    """What fits one message each: a row alone does."""
    part, size = list[Write](), 0
    for write in writes:
        length = len(write.key) + len(write.value or b"") + AROUND
        if part and size + length > PART:
            yield part
            part, size = [], 0
        part.append(write)
        size += length
    yield part
