"""Every page's commands, run as its reader would run them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.console import Reader, Run, steps

HOUSE = Path(__file__).parent.parent.parent
PAGES = [
    page for page in (HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))) if steps(page.read_text())
]

SHELL_FENCE = re.compile(r"^```(?:sh|bash|shell)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READ_ONLY = {"make boot", "make test", "atoll new unit | sudo tee", "sudo systemctl enable"}
"""Commands that are shown and not run here: the first two are what runs these tests, the others change
the host.
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """In a checkout after `make boot`: with `.venv`, which is not on the `PATH`, and with the checkout's own settings
    of tools. A home of its own, so that a page sees no node but its own, and leaves none behind."""
    home, checkout, programs = tmp_path / "home", tmp_path / "checkout", Path(sys.executable).parent
    home.mkdir()
    checkout.mkdir()
    for name in ("images", "pyproject.toml"):
        (checkout / name).symlink_to(HOUSE / name)
    (checkout / ".venv").symlink_to(sys.prefix)
    path = [entry for entry in os.environ["PATH"].split(os.pathsep) if Path(entry) != programs]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "XDG_"))}
    alone = kept | {
        "HOME": str(home),
        "ATOLL_HOME": f"{home}/nodes",
        "PATH": os.pathsep.join(path),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    yield Reader(checkout, alone)
    subprocess.run(
        [programs / "atoll", "shutdown"], env=alone, cwd=tmp_path, capture_output=True, check=False
    )


@pytest.mark.timeout(600)  # a page is some thirty programs, one after the other
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_followed(page: Path, reader: Reader) -> None:
    for step in steps(page.read_text()):
        reader.perform(step)


def test_no_command_is_shown_that_no_test_runs() -> None:
    """A command in a `sh` fence is for reading; those are few, and each is known."""
    shown = [
        line.split("#")[0].strip()
        for page in (HOUSE / "README.md", *(HOUSE / "docs").glob("*.md"))
        for fence in SHELL_FENCE.findall(page.read_text())
        for line in fence.splitlines()
    ]
    assert [line for line in shown if line and not line.startswith(tuple(READ_ONLY))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_that_boots_a_node_ends_it(page: Path) -> None:
    commands = [step.command for step in steps(page.read_text()) if isinstance(step, Run)]
    boots = sum("atoll boot" in command for command in commands)
    assert boots == sum("atoll shutdown" in command for command in commands)
