"""The node's rows as tables with columns, as of one revision: the kernel's by what they are of, a keyspace's by key.

A table is read page by page and handed over in batches of columns, so that a large one is never here as a whole.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from atoll.ipc.attach import Node as Attached
from atoll.ipc.system import records
from atoll.ipc.system.records import Row, name_of
from atoll.ipc.system.state import Item, State

from . import printing
from .rows import revision, value_of

Kind = Literal["text", "json", "integer", "real", "truth", "moment"]

MOMENTS = {"time", "started", "ended", "began", "opened", "closed", "first", "last", "added", "expiry"}
"""Fields of the kernel's rows that are times in ns; 0 is none."""


class Column(NamedTuple):
    name: str
    kind: Kind


OF_VERSION = (Column("_revision", "integer"), Column("_time", "moment"))
"""Of every table: what wrote the row."""

OF_KEYSPACE = (Column("key", "text"), Column("value", "json"), *OF_VERSION)


class Batch(NamedTuple):
    """Some rows of a table, a list a column."""

    columns: list[list[Any]]

    def __len__(self) -> int:
        return len(self.columns[0])


class Table(NamedTuple):
    columns: tuple[Column, ...]
    batches: Callable[[], Iterator[Batch]]


class Moment:
    """The tables of a node as of one moment, by schema and name: `kernel.process`; a keyspace `tally.rows` is the table
    `rows` of the schema `tally`, and `references` one of the schema `main`."""

    def __init__(self, attached: Attached, when: int | float | None) -> None:
        self._attached = attached
        self._names = attached.kernel.keyspaces.now()
        self._states: dict[str, State] = {}
        # One revision for all: it is asked of the kernel's keyspace, whose times are the store's.
        self._revision = revision(self._state(records.KEYSPACE), when)

    def names(self) -> dict[tuple[str, str], str | type[Row]]:
        """Schema and name of each table, and what it is of: a keyspace, or one of the kernel's tables."""
        found: dict[tuple[str, str], str | type[Row]] = {
            (records.KEYSPACE, name_of(table)): table for table in records.TABLES
        }
        for keyspace in self._names:
            if keyspace != records.KEYSPACE:
                schema, _, name = keyspace.rpartition(".")
                found[schema or "main", name] = keyspace
        return found

    def table(self, of: str | type[Row]) -> Table:
        if isinstance(of, str):
            state = self._state(of)
            return Table(OF_KEYSPACE, lambda: map(_by_key, self._pages(state, b"")))
        state = self._state(records.KEYSPACE)
        hints = get_type_hints(of)
        columns = (*(Column(name, _kind(name, hints[name])) for name in of.__struct_fields__), *OF_VERSION)
        return Table(columns, lambda: (_by_field(of, columns, page) for page in self._pages(state, of.table)))

    def _state(self, keyspace: str) -> State:
        if keyspace not in self._states:
            self._states[keyspace] = self._attached.keyspace(keyspace, ["read", "history"])
        return self._states[keyspace]

    def _pages(self, state: State, prefix: bytes) -> Iterator[Sequence[Item]]:
        start, end = prefix, records.after(prefix)
        while True:
            page = state.range.now(start, end, as_of=self._revision)
            if page.items:
                yield page.items
            if not page.more or not page.items:
                return
            start = page.items[-1].key + b"\0"


def _kind(name: str, hint: Any) -> Kind:
    if get_origin(hint) in (types.UnionType,):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if hint is int:
        return "moment" if name in MOMENTS else "integer"
    simple: dict[Any, Kind] = {str: "text", float: "real", bool: "truth", bytes: "text"}
    return simple.get(hint, "json")


def _by_key(items: Sequence[Item]) -> Batch:
    return Batch([
        [printing.text(item.key) for item in items],
        [printing.json(value_of(item.value)) for item in items],
        [item.revision for item in items],
        [item.time // 1000 for item in items],
    ])  # fmt: skip


def _by_field(table: type[Row], columns: Sequence[Column], items: Sequence[Item]) -> Batch:
    rows = [records.decode(table, item.value or b"") for item in items]
    own = [
        [_cell(getattr(row, column.name), column.kind) for row in rows]
        for column in columns[: -len(OF_VERSION)]
    ]
    return Batch([*own, [item.revision for item in items], [item.time // 1000 for item in items]])


def _cell(value: Any, kind: Kind) -> Any:
    """A field as its column has it: moments in microseconds."""
    if kind == "moment":
        return value // 1000 or None
    if kind == "json":
        return printing.json(msgspec.to_builtins(value))
    return printing.text(value) if isinstance(value, bytes) else value
