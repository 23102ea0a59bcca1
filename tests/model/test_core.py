"""The core's protocols on the weak machine: each holds, and each fails once any one of its ordered accesses, or of its
second looks, is left out."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from .core import Core
from .machine import WINDOW, Exploration, explore
from .protocols import MODELS

HOUSE = Path(__file__).parents[2]
ACCESS = re.compile(r"\b(load_acquire|store_release|exchange|fence_(?:store_load|loads|stores))\(")
FUNCTION = re.compile(r"^[a-z][^;=#\n]*?\b(\w+)\([^;\n]*$", re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)

ALONE = {
    "wait.c wake exchange": "only that it is one step counts: of two who wake, one rings",
    "tape.c record store_release": "the kernel reads a tape when its writer is dead, and the host orders what a process "
    "wrote before its end; the compiler must not put the position before what it is of",
}
"""Ordered accesses whose order nobody needs."""


DEEP = {
    "nothing_is_served_after_revoke_returned": 8,
    "nothing_revoked_is_served_by_a_task_that_waited": 8,
    "a_count_that_moved_shows_what_was_revoked": 8,
}
"""Models whose accesses stand so far apart that a thread must have more in hand before they can change places."""


def explored(name: str, absent: str = "", *, deeper: int = 0, enough: int = 0) -> Exploration:
    programs, memory = MODELS[name](Core(absent))
    window = DEEP.get(name, WINDOW) + deeper
    return explore(programs, memory, window=window, branches=False, enough=enough)


@cache
def names() -> dict[str, list[str]]:
    """By what could be left out, the models that it stands in, the smallest first."""
    found: dict[str, list[str]] = {}
    sizes = {}
    for name, build in MODELS.items():
        core = Core()
        sizes[name] = sum(map(len, build(core)[0].values()))
        for access in core.named:
            found.setdefault(access, []).append(name)
    return {access: sorted(within, key=sizes.__getitem__) for access, within in found.items()}


def accesses() -> set[str]:
    """Every ordered access of the source, by name."""
    found: dict[str, int] = {}
    for path in sorted((HOUSE / "native").glob("*.[ch]")):
        if path.name == "atomics.h":
            continue
        function = ""
        for line in COMMENT.sub("", path.read_text()).splitlines():
            if match := FUNCTION.match(line):
                function = match[1]
            for access in ACCESS.findall(line):
                name = f"{path.name} {function} {access}"
                found[name] = found.get(name, 0) + 1
    return {
        name if number == 1 else f"{name}#{number}"
        for name, count in found.items()
        for number in range(1, count + 1)
    }


SPARED = re.compile(r"Cannot be spared: ((?:[^`;]+, `[^`]+`(?:; )?)+)\.")
ITEM = re.compile(r"([^`;]+), `([^`]+)`")
LEADS = re.compile(r"\b(?:park_announce\(channel->own, \w+\)|fence_loads\(\));\s*")
"""What is of use only to a look that comes after it."""


class Language(NamedTuple):
    comment: "re.Pattern[str]"
    mark: str
    """What a line of a comment may begin and end with."""
    function: "re.Pattern[str]"
    statement: "re.Pattern[str]"
    """What follows a comment, up to the end of the statement or of its head."""


C = Language(COMMENT, " */", FUNCTION, re.compile(r"[^;{]*"))
PYTHON = Language(
    re.compile(r"^ *#.*(?:\n *#.*)*", re.MULTILINE),
    " #",
    re.compile(r"^ *(?:async )?def (\w+)", re.MULTILINE),
    re.compile(r"\s*.*"),
)


def without_comments(text: str, language: Language) -> str:
    """Of the same length."""
    return language.comment.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


class Spared(NamedTuple):
    name: str
    code: str
    follows: tuple[int, int]
    """Where the statement after the comment lies."""
    there: bool
    """Whether that has the code."""


def spared(name: str, text: str) -> list[Spared]:
    """What comments of a source say cannot be spared."""
    language = PYTHON if name.endswith(".py") else C
    bare, found = without_comments(text, language), []
    for comment in language.comment.finditer(text):
        said = " ".join(line.strip(language.mark) for line in comment[0].splitlines())
        for what, code in (item for group in SPARED.findall(said) for item in ITEM.findall(group)):
            function = [each[1] for each in language.function.finditer(bare[: comment.start()])][-1]
            after = language.statement.match(bare, comment.end())
            assert after is not None
            there = code in " ".join(after[0].split())
            found.append(Spared(f"{name} {function} {what.strip()}", code, after.span(), there))
    return found


def sources() -> Iterator[tuple[str, str]]:
    for folder, pattern in (("native", "*.[ch]"), ("ipc", "**/*.py"), ("microkernel", "**/*.py")):
        for path in sorted((HOUSE / folder).glob(pattern)):
            if path.name != "_core.c":
                yield path.name, path.read_text()


@pytest.mark.parametrize("name", MODELS)
def test_it_holds(name: str) -> None:
    found = explored(name)
    assert not found.failures, next(iter(found.failures.values()))
    assert found.outcomes


@pytest.mark.soak
@pytest.mark.parametrize("name", MODELS)
def test_it_holds_with_more_in_hand(name: str) -> None:
    found = explored(name, deeper=2)
    assert not found.failures, next(iter(found.failures.values()))


@pytest.mark.parametrize("absent", sorted(names()))
def test_none_can_be_spared(absent: str) -> None:
    failing = (explored(name, absent, enough=1).failures for name in names()[absent])
    assert any(failing), f"nothing fails without {absent}"


def test_every_ordered_access_of_the_source_is_here() -> None:
    modelled = {name for name in names() if ACCESS.search(f"{name.split('#')[0].rpartition(' ')[2]}(")}
    assert accesses() == modelled | ALONE.keys()


def test_every_second_look_of_the_source_is_here() -> None:
    """And what else the models rest on: a comment says so, and what it names is done right after it."""
    found = [each for name, text in sources() for each in spared(name, text)]
    assert not [each for each in found if not each.there]
    modelled = {name for name in names() if not ACCESS.search(f"{name.split('#')[0].rpartition(' ')[2]}(")}
    assert {each.name for each in found} == modelled


def test_what_is_of_use_only_to_a_look_is_followed_by_one() -> None:
    for name, text in sources():
        bare = without_comments(text, C)
        for lead in () if name.endswith(".py") else LEADS.finditer(bare):
            at = bare.index(";", lead.start()) + 1
            assert any(at <= each.follows[0] <= lead.end() for each in spared(name, text)), (
                f"{name}: nobody looks after {lead[0].strip()}"
            )


def test_a_look_that_goes_is_missed() -> None:
    """Its statement, and not its comment."""
    for name, text in sources():
        for look in spared(name, text):
            begin, end = look.follows
            left = {each.name: each.there for each in spared(name, text[:begin] + text[end:])}
            assert not left[look.name], look
