"""What the command writes: a table for a person, JSON for a program; answers to stdout, errors to stderr."""

import os
import select
import stat
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic, TypeVar

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from atoll.ipc.errors import AtollError, UnknownFailure

Row = TypeVar("Row")


ESCAPE = "atoll-escape"
"""The name by which `escaped` is registered."""

UNBOUNDED = 1 << 30
"""Columns of what is no terminal and says no width: nothing is cut, a program reads whole lines."""


def escaped(error: UnicodeError) -> tuple[str, int]:
    """What a locale cannot show, as JSON escapes it: what a program reads stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(
        f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)
    ), error.end


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table; numbers stand right.

    A table that is too wide first loses the columns that it can do without, the highest `spare` first; then those that
    `fold` get narrower, and of those that are `cut` a terminal shows the beginning. The JSON has everything.
    """

    title: str
    of: Callable[[Row], object]
    right: bool = False
    spare: int = 0
    fold: bool = False
    cut: bool = False


def console() -> Console:
    """Where tables go: as wide as the terminal or `COLUMNS`, else without an end."""
    wide = not sys.stdout.isatty() and not os.environ.get("COLUMNS")
    return Console(highlight=False, width=UNBOUNDED if wide else None)


DEEPEST = 100
"""Levels of a value that are shown. What others wrote may be nested so far that nothing can print it."""


def decoded(stored: bytes | memoryview) -> object:
    """What MessagePack stands for, whoever wrote it; for what is none, or is nested too far to be read, text or hexadecimal
    digits."""
    try:
        return msgspec.msgpack.decode(stored)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text(bytes(stored))


def plain(value: object, levels: int = DEEPEST) -> object:
    """A value that JSON can carry: bytes that are text become text, other bytes `0x` and hexadecimal
    digits; so does the data of MessagePack's extensions."""
    if isinstance(value, msgspec.Raw):
        return plain(decoded(memoryview(value)), levels)
    if isinstance(value, bytes | bytearray | memoryview):
        return text(bytes(value))
    if isinstance(value, msgspec.msgpack.Ext):
        return f"(extension {value.code}) {text(bytes(value.data))}"
    if not isinstance(value, msgspec.Struct | dict | list | tuple | set | frozenset):
        return value
    if not levels:
        return f"(nested more than {DEEPEST} levels deep)"
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name), levels - 1) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else str(plain(key, levels - 1)): plain(item, levels - 1)
            for key, item in value.items()
        }
    return [plain(item, levels - 1) for item in value]


def text(value: bytes) -> str:
    """Bytes as a person reads them."""
    try:
        decoded = value.decode()
    except UnicodeDecodeError:
        return "0x" + value.hex()
    return decoded if decoded.isprintable() else "0x" + value.hex()


def json(value: object) -> str:
    return msgspec.json.encode(plain(value)).decode()


GAP = 2
FOLDED = 16
"""Characters under which a folding column is no longer read with ease."""


def table(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> Text:
    """A table that fits the console as far as its columns allow; a narrower terminal breaks its lines."""
    room = console().width
    cells = {column: [cell(column.of(row)) for row in rows] for column in columns}
    full = {column: max(map(cell_len, (column.title, *texts))) for column, texts in cells.items()}
    width = {
        column: min(full[column], FOLDED) if column.fold or column.cut else full[column] for column in columns
    }

    def left() -> int:
        return room + GAP - sum(width[column] + GAP for column in width)

    while left() < 0 and (spare := max(width, key=lambda column: column.spare)).spare:
        del width[spare]
    for column, least in width.items():
        width[column] = least + max(0, min(left(), full[column] - least))
    lines = [
        line
        for place in range(len(rows))
        for line in zip_longest(*(fitted(cells[column][place], column, width[column]) for column in width))
    ]
    head, *below = (
        "  ".join(map(aligned, line, width, width.values())).rstrip() for line in (titles(width), *lines)
    )
    return Text.assemble((head, "bold"), *(f"\n{line}" for line in below), no_wrap=True, overflow="crop")


def titles(columns: Iterable[Column[Row]]) -> list[str]:
    return [column.title for column in columns]


def fitted(text: str, column: Column[Row], width: int) -> list[str]:
    """A cell's lines: folded between words where that can be, or its beginning."""
    if column.cut:
        return [text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…"]
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def aligned(text: str | None, column: Column[Row], width: int) -> str:
    blank = " " * (width - cell_len(text or ""))
    return f"{blank}{text or ''}" if column.right else f"{text or ''}{blank}"


def draw(rows: Sequence[Row], columns: Sequence[Column[Row]]) -> None:
    """Print a table; what is wider than the terminal the terminal breaks."""
    console().print(table(rows, columns), soft_wrap=True)


def cell(value: object) -> str:
    """A cell is one line of text, whatever a server's words hold."""
    return " ".join(str(value).split("\n"))


def rows(items: Sequence[Row], columns: Sequence[Column[Row]], as_json: bool, empty: str) -> None:
    """Print a list: one JSON array, or a table, or, for an empty list, the sentence that says so."""
    if as_json:
        print(json(items))
    elif items:
        draw(items, columns)
    else:
        print(empty)


def end_with_reader() -> None:
    """From here on end as soon as nobody reads the output, also while there is nothing to print: `| head` must end."""
    if not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
        return

    def look() -> None:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        poll.poll()
        os._exit(0)

    threading.Thread(target=look, daemon=True).start()


def say(sentence: str) -> None:
    """A sentence beside a table: lines as wide as the table's may be, broken between words."""
    print(textwrap.fill(sentence, console().width, break_on_hyphens=False, break_long_words=False))


def answer(value: object, sentence: str, as_json: bool) -> None:
    """Print what a command did: the value as JSON, or one sentence."""
    print(json(value) if as_json else sentence, flush=True)


def error(error: AtollError, as_json: bool) -> None:
    """Print an error: one sentence, or its name, sentence and fields."""
    if isinstance(error, UnknownFailure):  # one that only its server's package knows speaks for itself
        complain(error.name, error.text, error.details, as_json)
    else:
        complain(type(error).__name__, str(error), error.fields, as_json)


def complain(name: str, sentence: str, fields: Mapping[str, object], as_json: bool) -> None:
    """What went wrong, to stderr: one sentence, or one JSON object."""
    told = {"error": name, "message": sentence, "fields": fields}
    print(json(told) if as_json else f"atoll: {sentence}", file=sys.stderr)


def size(count: float) -> str:
    """Bytes in the unit that leaves at most three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
