"""From a TOML text to an `Image`, with every departure from the format noted where it stands.

The walk is driven by the Structs in `image`: a table's keys are a Struct's fields, a value's check its
annotation. A value that does not fit is noted and replaced by the field's default, and its path remembered as
flawed, so that the walk goes on and later checks stay silent about what has already been said. A reader thus
sees all mistakes of a file at once.
"""

import math
import re
import tomllib
import typing
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec
from msgspec import Struct

from atoll.ipc import naming

from .image import Address, Image, Key, Seconds, Size, Table, Uids
from .image_text import Path, Places, Position, locate

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
"""What names nodes, servers, keyspaces, slices, accounts and needs: they become folders, cgroups and attributes."""
SCALAR_MOST = 300
"""Characters of a size, a time, an address: more are none, and no number that can be reckoned with."""
UID_MOST = (1 << 32) - 2
"""The number behind it stands for no user: a server that is given it would keep the kernel's own, which may be root."""
TIME_MOST = (1 << 63) / 1e9
"""Seconds, which are counted in nanoseconds."""
NAMES = "a name of at most 40 lower-case letters, digits, - and _, a letter first"

_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)")
_SIZES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)")
_TIMES = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_UIDS = re.compile(r"(\d+)-(\d+)")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})")


class Problem(NamedTuple):
    """One thing wrong with an image; they sort by where they stand."""

    position: Position
    where: str
    """The path in the document, dotted; empty: the document."""
    expected: str
    found: str
    suggestion: str = ""

    def render(self, file: str) -> str:
        """`FILE:LINE:COLUMN: WHERE: expected .., found ...`, on one line."""
        where = f"{self.where}: " if self.where else ""
        hint = f"; {self.suggestion}" if self.suggestion else ""
        place = f"{file}:{self.position.line}:{self.position.column}"
        return f"{place}: {where}expected {self.expected}, found {self.found}{hint}"


class Told(Struct, frozen=True):
    """A problem as a program reads it."""

    file: str
    line: int
    column: int
    where: str
    expected: str
    found: str
    suggestion: str


class ImageRefused(Exception):
    """An image cannot be booted; `problems` says why, each with its place."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = sorted(set(problems))
        super().__init__("\n".join(problem.render(file) for problem in self.problems))

    def told(self) -> list[Told]:
        """For a program: every problem in the order of the file."""
        return [Told(self.file, *found.position, *found[1:]) for found in self.problems]

    @classmethod
    def at_start(cls, file: str, expected: str, found: str) -> "ImageRefused":
        """For a file that is no text at all."""
        return cls(file, [Problem(Position(1, 1), "", expected, found)])


@dataclass
class Draft:
    """What could be read of a file: an image, the places of its parts, and what was wrong."""

    file: str
    text: str
    places: Places
    raw: dict[str, Any]
    image: Image = field(default_factory=lambda: Image(image=_blank(Image, "image"), server={}))
    problems: list[Problem] = field(default_factory=list)
    flawed: set[Path] = field(default_factory=set)
    """Paths about which enough has been said."""

    def note(self, path: Path, expected: str, found: str, suggestion: str = "", at_key: bool = False) -> None:
        """Adds a problem, unless `path` or something around it was already found wrong."""
        if any(path[:length] in self.flawed for length in range(1, len(path) + 1)):
            return
        self.flawed.add(path)
        position = self.places.key(path) if at_key else self.places.value(path)
        self.problems.append(Problem(position, dotted(path), expected, found, suggestion))

    def refuse(self) -> None:
        """Raises `ImageRefused` if anything was noted."""
        if self.problems:
            raise ImageRefused(self.file, self.problems)


def dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else quoted(part))
    return text


def quoted(value: object) -> str:
    """A value as a message shows it: as TOML writes it, long ones cut."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(str(value if len(value) <= 60 else value[:57] + "...")).decode()
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return str(value)


def nearest(found: str, known: Collection[str]) -> str:
    """`did you mean "x"?`, if something known resembles what was found."""
    near = naming.nearest(found.lower(), known)
    return f"did you mean {quoted(near)}?" if near else ""


def one_of(known: Collection[str]) -> str:
    """`"a", "b" or "c"`, in the order given."""
    names = [quoted(name) for name in known]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names or ["nothing"])


def read(text: str, file: str) -> Draft:
    """Reads an image's text. Broken TOML raises `ImageRefused`; all else is in the draft's `problems`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ImageRefused(file, [_broken(str(error), text)]) from None
    draft = Draft(file=file, text=text, places=locate(text), raw=raw)
    image = _table(draft, (), raw, Image)
    assert isinstance(image, Image)
    draft.image = image
    return draft


def _broken(message: str, text: str) -> Problem:
    """`tomllib` ends its sentences with `(at line L, column C)` or `(at end of document)`."""
    what, _, where = message.partition(" (at ")
    place = re.match(r"line (\d+), column (\d+)", where)
    if place:
        position = Position(int(place[1]), int(place[2]))
    else:
        lines = text.split("\n")
        position = Position(len(lines), len(lines[-1]) + 1)
    return Problem(
        position, "", "TOML", f"what is none ({what[:1].lower()}{what[1:]})", _TOML_HINTS.get(what, "")
    )


_TOML_HINTS = {
    "Invalid value": 'text stands in quotes, as in name = "small"',
    "Cannot overwrite a value": "each key stands once in its table",
    "Invalid statement": "a line is [a.table] or key = value",
}
"""What a person most often means by what `tomllib` refuses."""


class Field(NamedTuple):
    type: Any
    key: Key
    required: bool


@cache
def keys_of(table: type[Table]) -> dict[str, Field]:
    """The keys of a table, in order, with what each may hold."""
    hints = typing.get_type_hints(table, include_extras=True)
    keys = {}
    for entry in msgspec.structs.fields(table):
        hint, key = get_args(hints[entry.name])
        keys[entry.name] = Field(hint, key, entry.required)
    return keys


def _blank(table: type[Table], name: str) -> Any:
    """What stands in for a required value that is missing or wrong."""
    hint = keys_of(table)[name].type
    if isinstance(hint, type) and issubclass(hint, Table):
        required = [key for key, about in keys_of(hint).items() if about.required]
        return hint(**{key: _blank(hint, key) for key in required})
    return (get_origin(hint) or hint)()


def _table(draft: Draft, path: Path, raw: object, table: type[Table]) -> Table | None:
    """A table as a Struct; None if it is no table at all."""
    if not isinstance(raw, dict):
        draft.note(path, "a table", quoted(raw))
        return None
    keys = keys_of(table)
    for name in raw.keys() - keys.keys():
        draft.note(
            (*path, name),
            _keys_sentence(path, keys),
            f"the key {quoted(name)}",
            nearest(name, keys),
            at_key=True,
        )
    values = {}
    for name, key in keys.items():
        if name in raw:
            value = _value(draft, (*path, name), raw[name], key.type, key.key)
            if value is not _WRONG:
                values[name] = value
        elif key.required:
            hint = _written_out(key.type)
            draft.note((*path, name), f"the key {quoted(name)}", "none", hint)
        if name not in values and key.required:
            values[name] = _blank(table, name)
    return table(**values)


def _keys_sentence(path: Path, keys: Collection[str]) -> str:
    return ("a table " if not path else "a key ") + "of " + ", ".join(keys)


def _written_out(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is dict:
        return "write {} if it is empty"
    return "write [] if it is empty" if origin is tuple else ""


_ANY = Key("")
_WRONG: Any = object()
"""A value that was noted as wrong."""


def _value(draft: Draft, path: Path, raw: object, hint: Any, key: Key) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, UnionType):
        inner = [arg for arg in args if arg is not NoneType]
        if len(inner) == 1:
            return _value(draft, path, raw, inner[0], key)
        return _one_of_tables(draft, path, raw, {table.__struct_fields__[0]: table for table in inner})
    if origin is Literal:
        if isinstance(raw, str) and raw in args:
            return raw
        draft.note(path, one_of(args), quoted(raw), nearest(raw, args) if isinstance(raw, str) else "")
        return _WRONG
    if origin is dict:
        return _named(draft, path, raw, args[1])
    if origin is tuple:
        return _array(draft, path, raw, args[0])
    if isinstance(hint, type) and issubclass(hint, Table):
        value = _table(draft, path, raw, hint)
        return _WRONG if value is None else value
    return _scalar(draft, path, raw, hint, key)


def _named(draft: Draft, path: Path, raw: object, hint: Any) -> Any:
    if not isinstance(raw, dict):
        draft.note(path, "a table", quoted(raw))
        return _WRONG
    if hint is Any:
        _plain(draft, path, raw)
        return raw
    values = {}
    for name, entry in raw.items():
        if not NAME.fullmatch(name):
            draft.note(
                (*path, name),
                NAMES,
                quoted(name),
                at_key=True,
            )
            continue
        value = _value(draft, (*path, name), entry, hint, _ANY)
        if value is not _WRONG:
            values[name] = value
    return values


def _plain(draft: Draft, path: Path, raw: object) -> None:
    """Of a configuration, which its server's type is held against later: that it can be written down at all."""
    if isinstance(raw, dict | list):
        for part, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            _plain(draft, (*path, part), value)
    elif isinstance(raw, int) and not -(1 << 63) <= raw < 1 << 64:
        draft.note(path, "a number of 64 bits", quoted(raw))


def _array(draft: Draft, path: Path, raw: object, hint: Any) -> Any:
    if not isinstance(raw, list):
        suggestion = f"write [{quoted(raw)}]" if isinstance(raw, str) else ""
        draft.note(path, "an array", quoted(raw), suggestion)
        return _WRONG
    values = [_value(draft, (*path, index), entry, hint, _ANY) for index, entry in enumerate(raw)]
    seen: set[str] = set()
    for index, entry in enumerate(raw):
        if isinstance(entry, str):
            if entry in seen:
                draft.note((*path, index), "each name once", f"{quoted(entry)} again")
            seen.add(entry)
    # Without it what comes behind one that is wrong would be at another index than in the text.
    return tuple(takewhile(lambda value: value is not _WRONG, values))


def _one_of_tables(draft: Draft, path: Path, raw: object, tables: dict[str, type[Table]]) -> Any:
    """`tables`: by the key that tells one from the others."""
    if not isinstance(raw, dict):
        draft.note(path, f"a table with one of the keys {one_of(tables)}", quoted(raw))
        return _WRONG
    kinds = [kind for kind in tables if kind in raw]
    if len(kinds) != 1:
        found = " and ".join(quoted(kind) for kind in kinds) if kinds else _keys_found(raw)
        hints = [hint for hint in (nearest(name, tables) for name in raw) if hint] if not kinds else []
        draft.note(path, f"a table with one of the keys {one_of(tables)}", found, hints[0] if hints else "")
        return _WRONG
    return _table(draft, path, raw, tables[kinds[0]])


def _keys_found(raw: dict[str, Any]) -> str:
    return ", ".join(quoted(name) for name in raw) if raw else "an empty table"


def _scalar(draft: Draft, path: Path, raw: object, hint: type, key: Key) -> Any:
    expected, value = _parse(raw, hint)
    if value is None:
        draft.note(path, expected, quoted(raw), _unit_hint(raw, hint))
        return _WRONG
    low, high = key.ge, key.le
    if (low is not None and value < low) or (high is not None and value > high):
        draft.note(path, f"{expected} {_bounds(low, high, hint)}", quoted(raw))
        return _WRONG
    return value


def _parse(raw: object, hint: type) -> tuple[str, Any]:
    """What is expected of a value of this type, and the value, None if it is not one."""
    number = isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 1 << 63
    text = raw if isinstance(raw, str) and len(raw) <= SCALAR_MOST else ""
    match hint:
        case _ if hint is Size:
            unit = _SIZE.fullmatch(text)
            value = Size(raw) if number else Size(int(unit[1]) * _SIZES[unit[2]]) if unit else None  # type: ignore[call-overload]
            return 'a size such as "512MiB"', value
        case _ if hint is Seconds:
            unit = _TIME.fullmatch(text)
            plain = number or (isinstance(raw, float) and math.isfinite(raw))
            value = Seconds(raw) if plain else Seconds(float(unit[1]) * _TIMES[unit[2]]) if unit else None  # type: ignore[arg-type]
            if value is not None and value > TIME_MOST:
                return "a time of at most 292 years", None
            return 'a time such as "30s"', value
        case _ if hint is Uids:
            span = _UIDS.fullmatch(text)
            uids = Uids(raw, raw) if number else Uids(int(span[1]), int(span[2])) if span else None  # type: ignore[arg-type]
            fits = uids is not None and 0 <= uids.first <= uids.last <= UID_MOST
            return 'a user id such as 1000, or a range such as "1000-1999"', uids if fits else None
        case _ if hint is Address:
            parts = _ADDRESS.fullmatch(text)
            fits = parts is not None and int(parts[2]) < 65536
            return 'an address such as "127.0.0.1:8080"', Address(raw) if fits else None
        case _ if hint is bool:
            return "true or false", raw if isinstance(raw, bool) else None
        case _ if hint is int:
            return "an integer", raw if number else None
        case _ if hint is float:
            finite = number or (isinstance(raw, float) and math.isfinite(raw))
            return "a number", float(raw) if finite else None  # type: ignore[arg-type]
        case _:
            return "a string", raw if isinstance(raw, str) else None


def _unit_hint(raw: object, hint: type) -> str:
    """For `"512mb"` and `"5 minutes"`: the units there are."""
    if not isinstance(raw, str) or not re.match(r"\d", raw):
        return ""
    if hint is Size:
        return "whole numbers of " + ", ".join(_SIZES)
    return "units are " + ", ".join(_TIMES) if hint is Seconds else ""


def _bounds(low: float | None, high: float | None, hint: type) -> str:
    show: Callable[[float | None], str] = (
        show_size if hint is Size else _show_seconds if hint is Seconds else str
    )
    if low is None or high is None:
        return f"of at least {show(low)}" if high is None else f"of at most {show(high)}"
    return f"from {show(low)} to {show(high)}"


def show_size(size: float | None) -> str:
    """Bytes with the largest unit that divides them."""
    for unit, factor in reversed(_SIZES.items()):
        if size and size % factor == 0:
            return f"{int(size) // factor}{unit}"
    return f"{int(size or 0)}B"


def _show_seconds(seconds: float | None) -> str:
    return f"{seconds:g} s"
