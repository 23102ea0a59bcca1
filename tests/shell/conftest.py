"""Live nodes for the command's tests: booted detached by the command itself, shut down by it afterwards."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll.servers.shell import exits

HOUSE = Path(__file__).parent.parent.parent
PROGRAM = Path(sys.executable).parent / "atoll"


@dataclass
class Shell:
    """A person's shell: a folder, a home without other nodes, and the node that commands are for."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        """One command line, whatever its exit code."""
        return subprocess.run(
            [str(PROGRAM), *words],
            cwd=self.folder,
            env=self.environment | more,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def said(self, *words: str, **more: str) -> str:
        """What a command printed that did what it was asked to."""
        done = self.run(*words, **more)
        assert done.returncode == exits.OK, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stderr == ""
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.said(*words, "--json"))

    def refused(self, code: int, *words: str) -> str:
        """The one sentence of a command that was refused with this exit code."""
        done = self.run(*words)
        assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stdout == ""
        assert done.stderr.startswith("atoll: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("atoll: ").rstrip()

    def row(self, server: str) -> dict[str, Any]:
        """What `ps` says of one server."""
        return next(row for row in self.json("ps") if row["server"] == server)


@contextmanager
def shell() -> Iterator[Shell]:
    """A shell in a short folder: a socket's address has room for 107 characters."""
    with tempfile.TemporaryDirectory(prefix="atoll-") as folder:
        kept = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("ATOLL_", "XDG_", "COLUMNS"))
        }
        home = {"HOME": folder, "ATOLL_HOME": folder, "NO_COLOR": "1", "ATOLL_NODE": f"{folder}/node"}
        yield Shell(Path(folder), kept | home)


@pytest.fixture(scope="module")
def node() -> Iterator[Shell]:
    """A shell with a minimal node, which is shut down at the end and must then be whole."""
    with shell() as running:
        running.said("boot", str(HOUSE / "images" / "minimal.toml"), "--folder", "node", "--detach")
        try:
            yield running
        finally:
            running.said("shutdown")
        assert running.said("check", "node").endswith(": whole\n")
