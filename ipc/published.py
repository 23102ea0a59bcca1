"""Tables that a server publishes: which of its rows a person may ask for by SQL, with a column a field.

    class Server(Serves[Gpu]):
        rows: Keyspace[Lease | Event]
        publishes = {
            "lease": Published("rows", Lease, prefix="lease/", moments=("granted", "expires")),
            "event": Published("rows", Event, prefix="event/", moments=("ended", "lease_granted")),
        }

The rows are those of the need's keyspace under the prefix; who asks needs the right to read that keyspace. A field that is a
Struct gives a column for each of its fields (`lease_granted`). What is stored is read as it lies: the type says how, the
server is not asked.
"""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct, inspect

Kind = Literal["text", "json", "number", "real", "truth", "moment", "seconds"]
"""Of a column. `moment`: an integer of ns since the epoch; `seconds`: a number of seconds since then; 0 is none."""
Step = str | int
_MOST: int = 4
"""Structs within each other that are columns; what lies deeper is JSON."""


class Published(Struct, frozen=True):
    """Rows of one type in a keyspace of the server."""

    need: str
    type: Any
    prefix: str = ""
    """Of their keys."""
    moments: tuple[str, ...] = ()
    """Columns that are times: integers in ns, others in seconds since the epoch."""


class Field(Struct, frozen=True, array_like=True):
    """A column, and where in a row's value it lies."""

    name: str
    kind: Kind
    path: tuple[Step, ...]


class TableShape(Struct, frozen=True):
    """A published table, as whoever has not the server's package reads it."""

    need: str
    prefix: str
    fields: tuple[Field, ...]
    tag: tuple[Step, Step] | None = None
    """Where a row says what it is, and what one of this table says."""


def shape(name: str, published: Published) -> TableShape:
    """Raises TypeError for what has no columns, with what to do."""
    found = inspect.type_info(published.type)
    if not isinstance(found, inspect.StructType):
        raise TypeError(
            f"publishes[{name!r}]: expected a Struct, whose fields are columns, not {published.type!r}"
        )
    fields = tuple(_fields(found, "", (), frozenset(published.moments), 1))
    columns = [field.name for field in fields]
    unknown = sorted(set(published.moments) - set(columns))
    if unknown:
        raise TypeError(
            f"publishes[{name!r}]: no column {unknown[0]!r} in {published.type.__name__}, only {columns}"
        )
    return TableShape(published.need, published.prefix, fields, _tag(found))


def _tag(found: inspect.StructType) -> tuple[Step, Step] | None:
    if found.tag is None:
        return None
    return (0 if found.array_like else str(found.tag_field)), found.tag


def _fields(
    found: inspect.StructType, before: str, path: tuple[Step, ...], moments: frozenset[str], depth: int
) -> Iterator[Field]:
    first = 1 if found.array_like and found.tag is not None else 0
    for place, field in enumerate(found.fields, first):
        name = before + field.name
        step: Step = place if found.array_like else field.encode_name
        kind = _without_none(field.type)
        if isinstance(kind, inspect.StructType) and depth < _MOST:
            yield from _fields(kind, f"{name}_", (*path, step), moments, depth + 1)
        else:
            yield Field(name, _kind(kind, name in moments), (*path, step))


def _without_none(found: inspect.Type) -> inspect.Type:
    if isinstance(found, inspect.UnionType):
        others = [each for each in found.types if not isinstance(each, inspect.NoneType)]
        if len(others) == 1:
            return others[0]
    return found


def _kind(found: inspect.Type, moment: bool) -> Kind:
    match found:
        case inspect.IntType():
            return "moment" if moment else "number"
        case inspect.FloatType():
            return "seconds" if moment else "real"
        case inspect.BoolType():
            return "truth"
        case inspect.StrType() | inspect.BytesType():
            return "text"
        case inspect.LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return "text"
    return "json"


def cell(value: object, path: tuple[Step, ...]) -> object:
    """What a decoded value has at a path; None where it has nothing there, as a row of an older version may."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def tagged(value: object, tag: tuple[Step, Step] | None) -> bool:
    """Whether a decoded value is a row of the table with that tag."""
    return tag is None or cell(value, tag[:1]) == tag[1]


decode = msgspec.msgpack.Decoder().decode
