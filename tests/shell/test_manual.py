"""The manual and the troubleshooting page say what the code says."""

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from atoll import ipc, microkernel, servers
from atoll.ipc.errors import AtollError
from atoll.servers.shell import exits
from atoll.servers.shell.command import app

HOUSE = Path(__file__).parent.parent.parent
MANUAL = (HOUSE / "docs" / "manual.md").read_text()
TROUBLES = (HOUSE / "docs" / "troubleshooting.md").read_text()


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command with its words, groups entered."""
    below = getattr(command, "commands", None)
    if not below:
        return {path: command}
    return {
        words: leaf for name, child in below.items() for words, leaf in leaves(child, (*path, name)).items()
    }


COMMANDS = leaves(typer.main.get_command(app))


def section(words: tuple[str, ...]) -> str:
    """The manual's section on a command."""
    found = re.search(rf"^### atoll {' '.join(words)}\n(.*?)(?=^##|\Z)", MANUAL, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def test_the_manual_has_every_command_and_no_other() -> None:
    headings = set(re.findall(r"^### atoll (.+)$", MANUAL, re.MULTILINE))
    assert headings == {" ".join(words) for words in COMMANDS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_section_has_every_option(words: tuple[str, ...]) -> None:
    usage = section(words).strip().splitlines()[0]
    options = {
        option
        for parameter in COMMANDS[words].params
        for option in getattr(parameter, "opts", ())
        if option.startswith("--") and option != "--help"
    }
    assert set(re.findall(r"--[a-z-]+", usage)) == options


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_explains_itself(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", "x")] == []


def test_the_manual_has_every_exit_code() -> None:
    table = re.findall(r"^\| (\d+) \| (.+) \|$", MANUAL, re.MULTILINE)
    assert {int(code): meaning for code, meaning in table} == exits.MEANINGS


OF_THE_COMMAND = {
    "Usage": exits.USAGE,
    "ImageRefused": exits.WRONG_INPUT,
    "Fault": exits.FAULT,
    "BackupRefused": exits.WRONG_INPUT,
    "NoRoom": exits.TRY_AGAIN,
    "BackupDamaged": exits.FINDINGS,
}
"""What the command names in JSON that is no `AtollError`."""


def every_error() -> list[type[AtollError]]:
    """All that the SDK, the kernel and the servers' interfaces can raise, by import of every module that may define
    one.
    """
    for package in (ipc, microkernel, servers):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

    def below(kind: type[AtollError]) -> list[type[AtollError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return [kind for kind in below(AtollError)[1:] if kind.__module__.startswith("atoll.")]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_an_entry(kind: type[AtollError]) -> None:
    entry = rf"^##+ {kind.__name__}$|^\| [a-z]+ \| `{kind.__name__}` \|"
    assert re.search(entry, TROUBLES, re.MULTILINE), f"{kind.__name__} is not in the page"


def test_entries_name_the_exit_code() -> None:
    by_name = {kind.__name__: kind for kind in every_error()}
    entries = re.findall(r"^##+ (\w+)\n\[(\d+)\]", TROUBLES, re.MULTILINE)
    assert entries
    assert set(OF_THE_COMMAND) <= {name for name, _ in entries}
    for name, code in entries:
        kind = by_name.get(name)
        known = OF_THE_COMMAND[name] if kind is None else exits.code(kind.__new__(kind))
        assert known == int(code), name
