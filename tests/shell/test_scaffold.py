"""`atoll new`: what is written works as it is, and stands up to the linters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.servers.shell import exits
from atoll.servers.shell.command import run

HOUSE = Path(__file__).parent.parent.parent
FILES = {"__init__.py", "interface.py", "server.py", "test_server.py"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    assert run(["new", "server", "tide_gauge", "--in", str(tmp_path)]) == exits.OK
    return tmp_path / "tide_gauge"


def tool(package: Path, *arguments: str) -> None:
    environment = os.environ | {"MYPYPATH": f"{HOUSE}/.types:{package.parent}"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=package.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_of_a_package(package: Path) -> None:
    assert {path.name for path in package.iterdir()} == FILES
    assert "class TideGauge(Interface):" in (package / "interface.py").read_text()


def test_its_own_tests_pass(package: Path) -> None:
    tool(package, "pytest", "-q", "-p", "no:cacheprovider", "tide_gauge")


def test_it_is_well_typed_and_formatted(package: Path) -> None:
    settings = str(HOUSE / "pyproject.toml")
    tool(package, "mypy", "--config-file", settings, "-p", "tide_gauge")
    ours = 'lint.isort.known-first-party = ["tide_gauge"]'
    tool(package, "ruff", "check", "--config", settings, "--config", ours, "tide_gauge")
    tool(package, "ruff", "format", "--check", "--config", settings, "tide_gauge")


def test_what_exists_is_not_written_over(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["new", "server", "tide_gauge", "--in", str(package.parent)]) == exits.WRONG_INPUT
    assert "which exists" in capsys.readouterr().err


def test_the_unit_starts_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["new", "unit"]) == exits.OK
    unit = capsys.readouterr().out
    assert f"ExecStart={sys.prefix}/bin/atoll boot /etc/atoll/%i.toml" in unit
    assert "$" not in unit
