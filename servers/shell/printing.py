"""What the command writes: a table for a person, JSON for a program; answers to stdout, errors to stderr."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atoll.ipc.errors import AtollError, UnknownFailure

Row = TypeVar("Row")


UNBOUNDED = 10_000
"""Columns of what is no terminal and says no width: nothing is cut, a program reads whole lines."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table; numbers stand right.

    A table that is too wide first loses the columns that it can do without, the highest `spare` first; then those that
    `fold` get narrower. The JSON has everything.
    """

    title: str
    of: Callable[[Row], object]
    right: bool = False
    spare: int = 0
    fold: bool = False


def console() -> Console:
    """Where tables go: as wide as the terminal or `COLUMNS`, else without an end."""
    wide = not sys.stdout.isatty() and not os.environ.get("COLUMNS")
    return Console(highlight=False, width=UNBOUNDED if wide else None)


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


def table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> Table:
    """A table that fits the console, as far as its columns allow."""
    room = console().width
    cells = [(column, [cell(column.of(row)) for row in rows]) for column in columns]
    least = {
        column.title: max(len(column.title), *(len(text) for text in texts)) if not column.fold else FOLDED
        for column, texts in cells
    }
    kept = list(columns)
    while sum(least[column.title] + GAP for column in kept) - GAP > room:
        spare = max(kept, key=lambda column: column.spare)
        if not spare.spare:
            break
        kept.remove(spare)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in kept:
        drawn.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not column.fold,
            min_width=None if column.fold else least[column.title],
        )
    for place in range(len(rows)):
        drawn.add_row(*(Text(texts[place]) for column, texts in cells if column in kept))
    return drawn


GAP = 2
FOLDED = 16
"""Characters under which a folding column is no longer read with ease."""


def cell(value: object) -> str:
    """A cell is one line of text, whatever a server's words hold."""
    return " ".join(str(value).split("\n"))


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
        print(f"atoll: {said(error)}", file=sys.stderr)


def said(error: AtollError) -> str:
    """The sentence for a person; a failure that only its server's package knows speaks for itself."""
    return error.text if isinstance(error, UnknownFailure) else str(error)


def size(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
