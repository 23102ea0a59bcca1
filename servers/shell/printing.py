"""What the command writes: a table for a person, JSON for a program; answers to stdout, errors to stderr."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atoll.ipc.errors import AtollError

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table; numbers stand right."""

    title: str
    of: Callable[[Row], object]
    right: bool = False


def console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def plain(value: object) -> object:
    """A value that JSON can carry: bytes that are text become text, other bytes `0x` and hexadecimal
    digits."""
    if isinstance(value, msgspec.Raw):
        return plain(msgspec.msgpack.decode(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return text(bytes(value))
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def text(value: bytes) -> str:
    """Bytes as a person reads them."""
    try:
        decoded = value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex()
    return decoded if decoded.isprintable() else "0x" + value.hex()


def json(value: object) -> str:
    return msgspec.json.encode(plain(value)).decode()


def table(rows: Iterable[Row], columns: Sequence[Column[Row]]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(column.of(row))) for column in columns))
    return drawn


def rows(items: Sequence[Row], columns: Sequence[Column[Row]], as_json: bool, empty: str) -> None:
    """Print a list: one JSON array, or a table, or, for an empty list, the sentence that says so."""
    if as_json:
        print(json(items))
    elif items:
        console().print(table(items, columns))
    else:
        print(empty)


def answer(value: object, sentence: str, as_json: bool) -> None:
    """Print what a command did: the value as JSON, or one sentence."""
    print(json(value) if as_json else sentence, flush=True)


def error(error: AtollError, as_json: bool) -> None:
    """Print an error: one sentence, or its name, sentence and fields."""
    if as_json:
        told = {"error": type(error).__name__, "message": str(error), "fields": error.fields}
        print(json(told), file=sys.stderr)
    else:
        print(f"atoll: {error}", file=sys.stderr)


def size(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
