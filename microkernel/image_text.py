"""Where in a TOML text each key and each value stands.

`tomllib` says what an image contains and, for broken TOML, where it broke; it does not keep where a value it
did understand stood. This module walks a text that `tomllib` has accepted and notes line and column of every
key and of every value, under the same path that leads to it in the parsed document. It therefore checks
nothing: a text that `tomllib` refuses must not come here.
"""

import re
import tomllib
from typing import NamedTuple

Path = tuple[str | int, ...]
"""From the document's root: names of keys, and indices into arrays and arrays of tables."""


class Position(NamedTuple):
    """A place in the text; both count from 1, columns in characters."""

    line: int
    column: int


class Places(NamedTuple):
    keys: dict[Path, Position]
    """Where each key (the last one of a dotted key, the header for a table) begins."""
    values: dict[Path, Position]
    """Where each value begins; for a table that a header opened, the header."""

    def key(self, path: Path) -> Position:
        """Where `path` was named, or the nearest place around it that the text does have."""
        return self._nearest(self.keys, path)

    def value(self, path: Path) -> Position:
        """Where the value at `path` begins, or the nearest place around it that the text does have."""
        return self._nearest(self.values, path)

    def _nearest(self, places: dict[Path, Position], path: Path) -> Position:
        while path:
            found = places.get(path) or self.keys.get(path) or self.values.get(path)
            if found:
                return found
            path = path[:-1]
        return Position(1, 1)


_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^,\]\}\n#]+")


class _Walker:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places = Places({}, {})
        self.lengths: dict[Path, int] = {}
        """How many elements each array of tables has so far."""
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def position(self, at: int) -> Position:
        low, high = 0, len(self.starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= at else (low, middle)
        return Position(low + 1, at - self.starts[low] + 1)

    def skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise ValueError(f"no {pattern.pattern} at {self.position(self.at)}")
        self.at = found.end()
        return found.group()

    def document(self) -> Places:
        table: Path = ()
        self.skip(_SPACE)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip(_SPACE)
        return self.places

    def header(self) -> Path:
        start = self.position(self.at)
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        table: Path = ()
        names = self.key()
        for name, _ in names[:-1]:
            table = (*table, name)
            self.places.keys.setdefault(table, start)
            if table in self.lengths:
                table = (*table, self.lengths[table] - 1)
        table = (*table, names[-1][0])
        self.places.keys.setdefault(table, start)
        self.places.values.setdefault(table, start)
        if many:
            index = self.lengths.get(table, 0)
            self.lengths[table] = index + 1
            table = (*table, index)
            self.places.keys[table] = self.places.values[table] = start
        else:
            self.places.keys[table] = self.places.values[table] = start
        self.at += 2 if many else 1
        return table

    def key(self) -> list[tuple[str, Position]]:
        names = []
        while True:
            self.skip(_BLANK)
            start, first = self.position(self.at), self.text[self.at]
            if first in "\"'":
                quoted = self.skip(_BASIC if first == '"' else _LITERAL)
                name = str(tomllib.loads(f"k = {quoted}")["k"])
            else:
                name = self.skip(_BARE_KEY)
            names.append((name, start))
            self.skip(_BLANK)
            if self.text[self.at] != ".":
                return names
            self.at += 1

    def pair(self, table: Path) -> None:
        path = table
        for name, start in self.key():
            path = (*path, name)
            self.places.keys.setdefault(path, start)
        self.at += 1  # the equals sign
        self.skip(_BLANK)
        self.value(path)

    def value(self, path: Path) -> None:
        self.places.values[path] = self.position(self.at)
        match self.text[self.at]:
            case "[":
                self.array(path)
            case "{":
                self.inline(path)
            case '"':
                self.skip(_LONG_BASIC if self.text.startswith('"""', self.at) else _BASIC)
            case "'":
                self.skip(_LONG_LITERAL if self.text.startswith("'''", self.at) else _LITERAL)
            case _:
                self.skip(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(_SPACE)
            if self.text[self.at] == "]":
                break
            self.value((*path, index))
            index += 1
            self.skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def inline(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(_SPACE)
            if self.text[self.at] == "}":
                break
            self.pair(path)
            self.skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1


def locate(text: str) -> Places:
    """Line and column of every key and value of `text`, which must be TOML that `tomllib` accepts."""
    return _Walker(text.replace("\r\n", "\n")).document()
