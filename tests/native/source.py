"""Atoll's own rules about its C sources, read from clang's syntax tree.

*Shared memory is read and written only through `atomics.h`.* Pointers to it are marked `SHARED`, which is a pointer into
another address space here: whoever loads or stores through one, or casts the mark away, is found.

*What is claimed is let go on every path.* Each `Claim` below names the statement that begins it and those that end it. The
statements of a function are walked in every order that its branches, loops and jumps allow; a path that leaves the function
with the claim still held is found.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from clang.cindex import Cursor, CursorKind, Index, TranslationUnit, Type, TypeKind

NATIVE = Path(__file__).resolve().parents[2] / "native"
ACCESSORS = "atomics.h"
SOURCES = tuple(sorted(path.name for path in NATIVE.glob("*.c") if path.name != "_core.c"))


class Finding(NamedTuple):
    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@cache
def _flags() -> tuple[str, ...]:
    """clang's library comes without the headers that a compiler brings: gcc's serve."""
    headers = subprocess.check_output(["gcc", "-print-file-name=include"], text=True).strip()
    return "-std=c11", "-DATOLL_SOURCE_CHECK", f"-I{NATIVE}", "-isystem", headers


@cache
def parsed(name: str, text: str | None = None) -> TranslationUnit:
    """A source of the core; with `text` in place of what its file holds."""
    unsaved = [] if text is None else [(str(NATIVE / name), text)]
    return Index.create().parse(str(NATIVE / name), _flags(), unsaved_files=unsaved)


def _below(cursor: Cursor) -> Iterator[Cursor]:
    for child in cursor.get_children():
        yield child
        yield from _below(child)


def _own(unit: TranslationUnit) -> Iterator[Cursor]:
    """What the core itself says at the top level, system headers and the accessors left out."""
    for cursor in unit.cursor.get_children():
        file = cursor.location.file
        if file is not None and NATIVE in Path(file.name).parents and Path(file.name).name != ACCESSORS:
            yield cursor


def _found(cursor: Cursor, what: str) -> Finding:
    return Finding(Path(cursor.location.file.name).name, cursor.location.line, what)


# shared memory --------------------------------------------------------------------------------------------------------

_PLACES = {
    CursorKind.DECL_REF_EXPR,
    CursorKind.MEMBER_REF_EXPR,
    CursorKind.ARRAY_SUBSCRIPT_EXPR,
    CursorKind.UNARY_OPERATOR,
    CursorKind.PAREN_EXPR,
}
"""Expressions that name a place in memory; what the atomic built-ins give is a value."""
_WRITES = {
    CursorKind.BINARY_OPERATOR,
    CursorKind.COMPOUND_ASSIGNMENT_OPERATOR,
    CursorKind.UNARY_OPERATOR,
}


def _shared(kind: Type) -> bool:
    return bool(kind.get_address_space())


def _to_shared(kind: Type) -> bool:
    kind = kind.get_canonical()
    return kind.kind == TypeKind.POINTER and _shared(kind.get_pointee())


def strays(unit: TranslationUnit) -> list[Finding]:
    """Where shared memory is reached other than through the accessors; and whatever the compiler itself objects to."""
    found = [
        Finding(Path(said.location.file.name).name, said.location.line, said.spelling)
        for said in unit.diagnostics
        if said.location.file is not None
    ]
    for top in _own(unit):
        for cursor in _below(top):
            children = list(cursor.get_children())
            if not children:
                continue
            first = children[0]
            place = first.kind in _PLACES and _shared(first.type)
            array = first.type.get_canonical().kind == TypeKind.CONSTANTARRAY
            if cursor.kind == CursorKind.UNEXPOSED_EXPR and place and not array and not _shared(cursor.type):
                found.append(_found(cursor, "shared memory is read outside the accessors"))
            if cursor.kind in _WRITES and place and _shared(cursor.type):
                found.append(_found(cursor, "shared memory is written outside the accessors"))
            last = children[-1]
            if cursor.kind in (CursorKind.CSTYLE_CAST_EXPR, CursorKind.UNEXPOSED_EXPR):
                pointer = cursor.type.get_canonical().kind == TypeKind.POINTER
                if _to_shared(last.type) and pointer and not _to_shared(cursor.type):
                    found.append(_found(cursor, "a pointer to shared memory loses its mark"))
    return found


# claims ---------------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """Patterns of source text. `unless`: a condition under which there is no claim, or somebody else's from then on, with
    the outcome (true or false) for which that holds."""

    name: str
    begins: str
    ends: str
    unless: tuple[tuple[str, bool], ...] = ()
    inside: str = ""
    """Of which function; every one, if it is empty."""


_REFUSED = (r"refusal != REFUSED_NOT", False)

CLAIMS = (
    Claim("the lock of the sending side", r"\bsending_begin\(", r"\bsending_end\("),
    Claim("an entry's or notice's odd sequence", r"store_relaxed\(&\w+->sequence,",
          r"store_release\(&\w+->sequence,"),
    Claim("a record's place on a ring", r"\bring->position = position \+", r"store_release\([^;]*line, position \+ 1\)"),
    # What was approved and is not taken would be approved again at every look.
    Claim("an approved record", r"\bchannel_peek\(", r"\bchannel_(take|leave)\(", (("found < 0", True), ("!found", True))),
    # The handler's first step closes the window that a good check has opened.
    Claim("the window between check and dispatch", r"\bwindow_open\(", r"\bwindow_close\(", (_REFUSED,)),
    Claim("the window that a check left open", r"\bcheck\(loop,", r"\bwindow_close\(|\? OP_CALL : OP_CAST",
          (("refusal != REFUSED_NOT", True),), inside="take"),
    # Who is armed sleeps, and is woken; who finds something after all must say that it is awake.
    Claim("an end that said it sleeps", r"\bpark_announce\(", r"\bpark_over\(|\bactive = 0\b|^return 1$"),
)  # fmt: skip

State = frozenset[tuple[int, int]]
"""Claims that are held, by index, with the line at which each began."""


class _Walk:
    """One function, walked in every order. `held`: what is held where it is left, with the line of leaving."""

    def __init__(self, function: Cursor, text: bytes) -> None:
        self._text = text
        self._name = function.spelling
        self._jumps: dict[str, set[State]] = {}
        self._breaks: list[set[State]] = []
        self._turns: list[set[State]] = []
        self.held: set[tuple[int, int, int]] = set()
        self.seen: set[tuple[int, str]] = set()
        """(claim, "begins" or "ends"): which patterns this function has."""
        body = next(c for c in function.get_children() if c.kind == CursorKind.COMPOUND_STMT)
        known = -1
        while known != (known := sum(map(len, self._jumps.values()))):  # until no jump brings anything new
            self._leave(self._run(body, {frozenset()}), function.extent.end.line)

    def _source(self, cursor: Cursor) -> str:
        extent = cursor.extent
        return " ".join(self._text[extent.start.offset : extent.end.offset].decode().split())

    def _leave(self, states: Iterable[State], line: int) -> None:
        self.held |= {(claim, began, line) for state in states for claim, began in state}

    def _step(self, cursor: Cursor, states: set[State]) -> set[State]:
        text, line = self._source(cursor), cursor.extent.start.line
        for number, claim in enumerate(CLAIMS):
            if claim.inside not in ("", self._name):
                continue
            if re.search(claim.ends, text):
                self.seen.add((number, "ends"))
                states = {frozenset(held for held in state if held[0] != number) for state in states}
            elif re.search(claim.begins, text):
                self.seen.add((number, "begins"))
                states = {state | {(number, line)} for state in states}
        return states

    def _given(self, condition: Cursor, states: set[State], outcome: bool) -> set[State]:
        text = self._source(condition)
        free = {n for n, claim in enumerate(CLAIMS) if (text, outcome) in claim.unless}
        return {frozenset(held for held in state if held[0] not in free) for state in states}

    def _run(self, cursor: Cursor, states: set[State]) -> set[State]:
        children = list(cursor.get_children())
        match cursor.kind:
            case CursorKind.COMPOUND_STMT:
                for child in children:
                    states = self._run(child, states)
                return states
            case CursorKind.IF_STMT:
                states = self._step(children[0], states)
                taken = self._run(children[1], self._given(children[0], states, True))
                passed = self._given(children[0], states, False)
                return taken | (self._run(children[2], passed) if len(children) > 2 else passed)
            case CursorKind.FOR_STMT | CursorKind.WHILE_STMT | CursorKind.DO_STMT:
                return self._loop(cursor, children, states)
            case CursorKind.SWITCH_STMT:
                states = self._step(children[0], states)
                self._breaks.append(set())
                entered: set[State] = set()
                for case in children[1].get_children():  # any case may be the first, and falls into the next
                    entered = self._run(case, entered | states)
                return states | entered | self._breaks.pop()
            case CursorKind.CASE_STMT | CursorKind.DEFAULT_STMT:
                return self._run(children[-1], states)
            case CursorKind.LABEL_STMT:
                return self._run(children[-1], states | self._jumps.setdefault(cursor.spelling, set()))
            case CursorKind.GOTO_STMT:
                self._jumps.setdefault(children[0].spelling, set()).update(states)
            case CursorKind.BREAK_STMT:
                self._breaks[-1] |= states
            case CursorKind.CONTINUE_STMT:
                self._turns[-1] |= states
            case CursorKind.RETURN_STMT:
                self._leave(self._step(cursor, states), cursor.extent.start.line)
            case _:
                return self._step(cursor, states)
        return set()

    def _loop(self, cursor: Cursor, parts: list[Cursor], states: set[State]) -> set[State]:
        body = parts[0] if cursor.kind == CursorKind.DO_STMT else parts[-1]
        heads = [part for part in parts if part is not body]
        self._breaks.append(set())
        self._turns.append(set())
        endless = cursor.kind == CursorKind.FOR_STMT and "(;;)" in self._source(cursor)
        around = set() if cursor.kind == CursorKind.DO_STMT else set(states)
        while True:
            before = len(states)
            for head in heads:
                states = self._step(head, states)
            after = self._run(body, states) | self._turns[-1]
            states |= after
            around |= after
            if len(states) == before:
                break
        self._turns.pop()
        return self._breaks.pop() | (set() if endless else around)


def leaks(unit: TranslationUnit, text: str) -> list[Finding]:
    """Where a function is left with a claim still held."""
    found = []
    for function in _functions(unit):
        walk = _Walk(function, text.encode())
        for number, began, left in sorted(walk.held):
            what = f"{function.spelling} leaves with {CLAIMS[number].name}, claimed in line {began}"
            found.append(_found(function, what)._replace(line=left))
    return found


def patterns(unit: TranslationUnit, text: str) -> set[tuple[int, str]]:
    """Which ends of which claims a source has."""
    walks = [_Walk(function, text.encode()) for function in _functions(unit)]
    return set().union(*(walk.seen for walk in walks))


def _functions(unit: TranslationUnit) -> Iterator[Cursor]:
    for cursor in _own(unit):
        in_source = cursor.location.file.name == unit.spelling
        if cursor.kind == CursorKind.FUNCTION_DECL and cursor.is_definition() and in_source:
            yield cursor
