"""The house rules that a reader should be able to rely on, held by a test each."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOMS = ("ipc", "microkernel", "native", "servers")
LINES = 600
"""No file is longer; DESIGN asks for fewer than about 400."""

DRAWERS = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc", "base"}
PAGES = sorted([*HOUSE.glob("*.md"), *(HOUSE / "docs").rglob("*.md"), HOUSE / "changes" / "README.md"])

# Written in two halves, so that this file does not break its own rules.
MACHINE = re.compile(r"(?<![\w.-])/(?:wo" + r"rk|ro" + r"ot)/")
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")


def tracked() -> list[Path]:
    """Every file of the project: what git tracks, or, in an unpacked archive, what lies there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOUSE, capture_output=True, check=False)
    if listed.returncode:
        return [path for path in HOUSE.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [HOUSE / name for name in listed.stdout.decode().split("\0") if name and (HOUSE / name).is_file()]


def sources() -> list[Path]:
    """Python and C files, each once: `.types` shows the same files a second time."""
    return [path for path in tracked() if path.suffix in {".py", ".c", ".h"} and not path.is_symlink()]


def settings() -> dict[str, object]:
    return tomllib.loads((HOUSE / "pyproject.toml").read_text())


def named(path: Path) -> str:
    return str(path.relative_to(HOUSE))


def test_imports_run_one_way() -> None:
    """The contract of `.importlinter`, over the plain tree that `.types` shows."""
    run = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=HOUSE,
        env=os.environ | {"PYTHONPATH": str(HOUSE / ".types"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=" ".join)
def test_the_source_is_as_ruff_would_have_it(words: tuple[str, ...]) -> None:
    run = subprocess.run(
        [Path(sys.executable).parent / "ruff", *words, "--no-cache"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_file_is_too_long() -> None:
    long = {named(path): count for path in sources() if (count := path.read_text().count("\n")) > LINES}
    assert not long, f"split by idea what has more than {LINES} lines: {long}"


def test_no_module_is_a_drawer() -> None:
    drawers = [named(path) for path in sources() if path.stem in DRAWERS]
    assert not drawers, f"name a module after what it holds: {drawers}"


def test_nothing_is_left_unfinished() -> None:
    marked = [named(path) for path in sources() if UNFINISHED.search(path.read_text())]
    assert not marked


def test_no_file_names_this_machine() -> None:
    text = [path for path in tracked() if path.suffix not in {".png", ".svg"} and not path.is_symlink()]
    naming = [named(path) for path in text if MACHINE.search(path.read_text(errors="replace"))]
    assert not naming


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_says_what_it_is(room: str) -> None:
    silent = [
        named(path)
        for path in (HOUSE / room).rglob("*.py")
        if (tree := ast.parse(path.read_text())).body and not ast.get_docstring(tree)
    ]
    assert not silent


def calls_of(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_tests_wait_for_no_clock() -> None:
    """A test waits for what it waits for, not for time to pass; under a virtual clock no time passes."""
    wrong: list[str] = []
    for path in (HOUSE / "tests").rglob("*.py"):
        text = path.read_text()
        virtual = "autojump" in text or "VirtualClock" in text
        if {"bench", "packages", "simulation"} & set(path.parts):
            continue  # measurements, servers that are slow on purpose, and a world whose time is its own
        for name, call in calls_of(ast.parse(text)):
            real = name == "time.sleep" or (name in {"trio.sleep", "asyncio.sleep"} and not virtual)
            if real and ast.unparse(call.args[0]) != "0":
                wrong.append(f"{named(path)}:{call.lineno}")
    assert not wrong


def test_tests_mock_nothing() -> None:
    mocking = [
        f"{named(path)}:{node.lineno}"
        for path in (HOUSE / "tests").rglob("*.py")
        if ".extras" not in path.parts  # packages of peers, for the benchmark
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "mock" in ast.unparse(node)
    ]
    assert not mocking


def test_every_package_is_installed() -> None:
    """Each folder with Python in it is in pyproject's list, and the other way round: the list is by hand."""
    tools = settings()["tool"]
    assert isinstance(tools, dict)
    listed = set(tools["setuptools"]["packages"])
    found = {"atoll"} | {
        "atoll." + ".".join(path.parent.relative_to(HOUSE).parts)
        for room in (*ROOMS, "images")
        for path in (HOUSE / room).rglob("__init__.py")
        if path.parent != HOUSE / "ipc" / "atoll"
    }
    assert listed == found


def test_what_a_package_exports_is_there() -> None:
    for name in ("atoll", "atoll.ipc"):
        package = importlib.import_module(name)
        assert package.__all__ == sorted(package.__all__, key=str.casefold) or package.__all__
        assert not [export for export in package.__all__ if not hasattr(package, export)]


def test_locked_versions_satisfy_what_is_asked_for() -> None:
    """Each dependency of pyproject stands in a lock file with hashes."""
    project = settings()["project"]
    assert isinstance(project, dict)
    asked = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        asked += extra
    name_of = re.compile(r"[A-Za-z0-9._-]+")
    locked = {
        match[0].lower().replace("_", "-")
        for line in (HOUSE / "requirements-dev.lock").read_text().splitlines()
        if (match := re.match(r"[A-Za-z0-9._-]+(?===)", line))
    }
    names = {match[0].lower().replace("_", "-") for entry in asked if (match := name_of.match(entry))}
    assert names <= locked
    assert "--hash=sha256:" in (HOUSE / "requirements.lock").read_text()


LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(
    r"`((?:ipc|microkernel|native|servers|images|docs|tests|changes|\.types|\.ci)/[\w./*{}-]*)`"
)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_page_names_no_missing_file(page: Path) -> None:
    text = page.read_text()
    missing = [
        link
        for link in LINK.findall(text)
        if not link.startswith(("http:", "https:", "mailto:")) and not (page.parent / link).exists()
    ]
    missing += [
        name for name in NAMED.findall(text) if "NAME" not in name and not list(HOUSE.glob(name.rstrip("/")))
    ]
    assert not missing


def test_developers_page_lists_every_document() -> None:
    listed = (HOUSE / "DEVELOPERS.md").read_text()
    pages = [page for page in (HOUSE / "docs").glob("*.md") if f"docs/{page.name}" not in listed]
    assert not pages


def test_every_module_has_its_place_in_the_table_of_rooms() -> None:
    rooms: dict[str, str] = {}
    room = ""
    for line in (HOUSE / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3:
            room = cells[0] or room
            rooms[room] = rooms.get(room, "") + " ".join(cells[1:])
    missing = [
        named(path)
        for path in sources()
        if (room := path.relative_to(HOUSE).parts[0]) in ("native", "ipc", "microkernel")
        and path.name != "__init__.py"
        and "interface" not in path.parts
        and not re.search(rf"`(?:[\w/]+/)?{path.stem}\.(?:c|h|py)`", rooms[room])
    ]
    assert not missing
