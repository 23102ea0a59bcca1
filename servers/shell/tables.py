"""The node's rows as tables with columns, as of one revision: the kernel's by what they are of, those that servers publish
by the fields of their type, a keyspace's by key; and what was changed, when, and by whom.

A table is read page by page and handed over in batches of columns, so that a large one is never here as a whole.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from atoll.ipc import published
from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NotAllowed
from atoll.ipc.system import records
from atoll.ipc.system.calls import PREFIX
from atoll.ipc.system.kernel import PublishedTable
from atoll.ipc.system.records import Row, name_of
from atoll.ipc.system.state import Change, Item, State

from . import printing
from .calls import CallRow, row_of
from .recorded import Records
from .rows import pages, revision, value_of
from .travel import named

Kind = Literal["text", "json", "integer", "number", "real", "truth", "moment"]
"""Of a column: `integer` is at least 0 and below 2**64, `number` any other."""

MOMENTS = {"time", "started", "ended", "began", "opened", "closed", "first", "last", "added", "expiry"}
"""Fields of the kernel's rows that are times in ns; 0 is none."""


class Column(NamedTuple):
    name: str
    kind: Kind


OF_VERSION = (Column("_revision", "integer"), Column("_time", "moment"))
"""Of every table: what wrote the row."""

OF_KEYSPACE = (Column("key", "text"), Column("value", "json"), *OF_VERSION)
CHANGE = "store", "change"
"""Schema and name of the table of changes."""
OF_CHANGE = (
    Column("revision", "integer"), Column("time", "moment"), Column("keyspace", "text"), Column("kind", "text"),
    Column("key", "text"), Column("operation", "text"), Column("value", "json"), Column("writer", "text"),
    Column("badge", "integer"), Column("channel", "integer"), Column("request", "integer"), Column("trace", "integer"),
    Column("note", "text"), Column("others", "json"),
)  # fmt: skip
CHANGES_AT_ONCE = 1000
FIRST_SECOND, END_OF_SECONDS = -62_135_596_800, 253_402_300_800
"""Of the years 1 to 9999: what can be told as a date."""


class Batch(NamedTuple):
    """Some rows of a table, a list a column."""

    columns: list[list[Any]]

    def __len__(self) -> int:
        return len(self.columns[0])


class Table(NamedTuple):
    columns: tuple[Column, ...]
    batches: Callable[[], Iterator[Batch]]


class Changes(NamedTuple):
    """The table of changes: of every keyspace that this program may read."""


class Calls(NamedTuple):
    """The table of recorded calls, of every server whose record this program may read."""


CALL = records.KEYSPACE, "call"
Source = str | type[Row] | PublishedTable | Changes | Calls
"""What a table is of: a keyspace, one of the kernel's tables, one that a server publishes, or all that was changed."""


class Moment:
    """The tables of a node as of one moment, by schema and name: `kernel.process`; `gpu.lease`, which the server `gpu`
    publishes; a keyspace `tally.rows` is the table `rows` of the schema `tally`, and `references` one of the schema `main`.
    """

    def __init__(
        self, attached: Attached, when: int | float | None, since: int | float | None = None
    ) -> None:
        """`since`: from which moment on changes are told; None: from the first that is kept."""
        self._attached = attached
        self._names = attached.kernel.keyspaces.now()
        if not self._names:
            raise NotAllowed(
                method="asking the node's rows", needed="a keyspace, with the rights read and history"
            )
        self._states: dict[str, State] = {}
        self._revision = self._at(when)
        self._since = 0 if since is None else self._at(since)
        self._sources: dict[tuple[str, str], Source] | None = None

    def _at(self, when: int | float | None) -> int:
        """One revision for all tables. A keyspace answers with a later one than it was if it keeps less of its past: the
        least is right for all."""
        asked = [records.KEYSPACE] if records.KEYSPACE in self._names else self._names
        return min(revision(self._state(name), when) for name in asked)

    def names(self) -> dict[tuple[str, str], Source]:
        """Schema and name of each table, and what it is of."""
        if self._sources is None:
            found: dict[tuple[str, str], Source] = {CHANGE: Changes()}
            if records.KEYSPACE in self._names:
                found[CALL] = Calls()
            found |= {
                (records.KEYSPACE, name_of(table)): table
                for table in records.TABLES
                if table.lies_in in self._names
            }
            for keyspace in self._names:
                if not records.written_by_the_node(keyspace):
                    schema, _, name = keyspace.rpartition(".")
                    found[schema or "main", name] = keyspace
            # A server's own word for its rows goes before the keyspace that happens to have that name.
            found |= {(each.server, each.name): each for each in self._attached.kernel.published.now()}
            self._sources = found
        return self._sources

    def table(self, of: Source) -> Table:
        if isinstance(of, Changes):
            return Table(OF_CHANGE, self._changes)
        if isinstance(of, str):
            state = self._state(of)
            return Table(OF_KEYSPACE, lambda: map(_by_key, self._pages(state, b"")))
        if isinstance(of, PublishedTable):
            return self._published(of)
        if isinstance(of, Calls):
            return Table(OF_CALL, self._calls)
        state = self._state(of.lies_in)
        hints = get_type_hints(of)
        columns = (*(Column(name, _kind(name, hints[name])) for name in of.__struct_fields__), *OF_VERSION)
        pages = self._lines if of is records.LogRow else self._pages
        return Table(columns, lambda: (_by_field(of, columns, page) for page in pages(state, of.table)))

    def _published(self, of: PublishedTable) -> Table:
        state = self._state(of.keyspace)
        fields = of.shape.fields
        columns = (
            Column("_key", "text"),
            *(Column(field.name, "moment" if field.kind == "seconds" else field.kind) for field in fields),
            *OF_VERSION,
        )
        prefix = of.shape.prefix.encode()
        return Table(columns, lambda: (of_shape(of, page) for page in self._pages(state, prefix)))

    def _state(self, keyspace: str) -> State:
        if keyspace not in self._states:
            self._states[keyspace] = self._attached.keyspace(keyspace, ["read", "history"])
        return self._states[keyspace]

    def _lines(self, state: State, prefix: bytes) -> Iterator[Sequence[Item]]:
        """Log lines are written once, and kept for a time only: those that are there now, if they were there then."""
        for page in self._pages(state, prefix, past=False):
            if lines := [item for item in page if item.revision <= self._revision]:
                yield lines

    def _pages(self, state: State, prefix: bytes, *, past: bool = True) -> Iterator[Sequence[Item]]:
        return pages(state, prefix, records.after(prefix), self._revision if past else None)

    def _changes(self) -> Iterator[Batch]:
        """Of each keyspace as far back as it is kept; but for recorded calls, which are a table of their own."""
        for keyspace in (name for name in self._names if not name.startswith(PREFIX)):
            state = self._state(keyspace)
            first = max(self._since, state.horizon.now().revision)
            if first < self._revision:
                changes = state.changes.now(first, self._revision)
                while some := list(islice(changes, CHANGES_AT_ONCE)):
                    yield _by_change(keyspace, some)

    def _calls(self) -> Iterator[Batch]:
        kept = Records(self._attached, self._revision)
        each = (found for server in kept.servers() for found in kept.all(server))
        while some := list(islice(each, CHANGES_AT_ONCE)):
            yield of_calls([row_of(kept, process, call) for process, call in some])


def _kind(name: str, hint: Any) -> Kind:
    if get_origin(hint) in (types.UnionType,):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if hint is int:
        return "moment" if name in MOMENTS else "integer"
    simple: dict[Any, Kind] = {str: "text", float: "real", bool: "truth", bytes: "text"}
    return simple.get(hint, "json")


def of_calls(rows: Sequence[CallRow]) -> Batch:
    return Batch([[_cell(getattr(row, column.name), column.kind) for row in rows] for column in OF_CALL])


OF_CALL = tuple(Column(name, _kind(name, hint)) for name, hint in get_type_hints(CallRow).items())


def _by_key(items: Sequence[Item]) -> Batch:
    return Batch([
        [printing.text(item.key) for item in items],
        [printing.json(value_of(item.value)) for item in items],
        [item.revision for item in items],
        [item.time // 1000 for item in items],
    ])  # fmt: skip


def of_shape(of: PublishedTable, items: Sequence[Item]) -> Batch:
    """Rows that a server publishes."""
    shape = of.shape
    found = [(item, _opened(item.value)) for item in items]
    # What is sealed may be a row of this table, for all that anybody here knows.
    rows = [(item, value) for item, value in found if value is None or published.tagged(value, shape.tag)]
    own = [
        [_told(published.cell(value, field.path), field.kind) for _, value in rows] for field in shape.fields
    ]
    keys = [printing.text(item.key) for item, _ in rows]
    return Batch([keys, *own, [item.revision for item, _ in rows], [item.time // 1000 for item, _ in rows]])


def _opened(stored: bytes | None) -> Any:
    """A row's value; None for one that is sealed."""
    try:
        return published.decode(stored or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _told(value: Any, kind: published.Kind) -> Any:
    """A field as its column has it. What is not of the field's type, as in a row of another version, or no time of the
    calendar's, is none."""
    match kind, value:
        case _, None:
            return None
        case "json", _:
            return printing.json(value)
        case "seconds", int() | float() if FIRST_SECOND <= value < END_OF_SECONDS:
            return int(value * 1e6) or None
        case "moment", int():
            return value // 1000 or None
        case "number", int():
            return str(value)
        case "real", int() | float():
            return float(value)
        case ("truth", bool()) | ("text", str()):
            return value
        case "text", bytes():
            return printing.text(value)
    return None


def _by_change(keyspace: str, changes: Sequence[Change]) -> Batch:
    rows = [_change(keyspace, change, item) for change in changes for item in change.items]
    return Batch([list(column) for column in zip(*rows, strict=True)])


def _change(keyspace: str, change: Change, item: Item) -> tuple[Any, ...]:
    who = change.provenance
    channel, _, request = who.call.partition(":")
    value = None if item.value is None else value_of(item.value)
    own = records.written_by_the_node(keyspace)
    kind, key = named(item.key) if own else ("", printing.text(item.key))
    return (
        change.revision, change.time // 1000, keyspace, kind, key, "delete" if item.value is None else "put",
        None if item.value is None else printing.json(value), who.keyspace, who.badge,
        int(channel or 0), int(request or 0), who.trace, who.note, printing.json(who.others),
    )  # fmt: skip


def _by_field(table: type[Row], columns: Sequence[Column], items: Sequence[Item]) -> Batch:
    rows = [records.decode(table, item.value or b"") for item in items]
    own = [
        [_cell(getattr(row, column.name), column.kind) for row in rows]
        for column in columns[: -len(OF_VERSION)]
    ]
    return Batch([*own, [item.revision for item in items], [item.time // 1000 for item in items]])


def _cell(value: Any, kind: Kind) -> Any:
    """A field as its column has it: moments in microseconds."""
    if value is None:
        return None
    if kind == "moment":
        return value // 1000 or None
    if kind == "json":
        return printing.json(msgspec.to_builtins(value))
    return printing.text(value) if isinstance(value, bytes) else value
