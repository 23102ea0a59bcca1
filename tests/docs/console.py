"""Runs a page of the documentation as its reader would: top to bottom, in one shell.

What a command does to the shell (`cd`, `export`) holds for those that follow. A fence `console` holds
commands (`$ ...`) and what they print: a line `...` stands for any lines, `...` within a line for any text,
runs of spaces are alike, and a last line `[exit N]` gives the exit code where it is not 0. A fence
`python FILE` is written to that file. Other fences are for reading only.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w+)?(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT = re.compile(r"^\[exit (\d+)\]$")


@dataclass(frozen=True)
class Run:
    """A command, the lines it is to print, its exit code, and where the page says so."""

    line: int
    command: str
    expected: tuple[str, ...]
    code: int = 0


@dataclass(frozen=True)
class Write:
    line: int
    file: str
    text: str


def steps(page: str) -> list[Run | Write]:
    """What a reader of the page does, in order."""
    found: list[Run | Write] = []
    for fence in FENCE.finditer(page):
        line = page.count("\n", 0, fence.start()) + 2
        kind, file, text = fence.groups()
        if kind == "console":
            found += commands(text, line)
        elif kind == "python" and file:
            found.append(Write(line, file, text))
    return found


def commands(text: str, line: int) -> list[Run]:
    found: list[Run] = []
    for number, written in enumerate(text.splitlines(), line):
        if written.startswith("$ "):
            found.append(Run(number, written[2:], ()))
        elif not found:
            raise ValueError(f"line {number}: output before the first command: {written!r}")
        elif code := EXIT.match(written):
            found[-1] = Run(found[-1].line, found[-1].command, found[-1].expected, int(code[1]))
        else:
            found[-1] = Run(found[-1].line, found[-1].command, (*found[-1].expected, written))
    return found


def pattern(line: str) -> re.Pattern[str]:
    parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in line.split("...")]
    return re.compile(".*".join(parts) + r"\s*")


def fits(expected: tuple[str, ...], printed: list[str]) -> bool:
    """Whether the lines are as the page shows them."""
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(fits(expected[1:], printed[start:]) for start in range(len(printed) + 1))
    return (
        bool(printed) and bool(pattern(expected[0]).fullmatch(printed[0])) and fits(expected[1:], printed[1:])
    )


@dataclass
class Reader:
    """Whoever follows a page: where their shell is, and what it exports."""

    folder: Path
    environment: dict[str, str]

    def perform(self, step: Run | Write) -> None:
        """Do one step; an AssertionError says what the page shows and what came."""
        if isinstance(step, Write):
            path = self.folder / step.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
            return
        done = self.run(step.command)
        where = f"line {step.line}: $ {step.command}"
        assert done.returncode == step.code, (
            f"{where}: exit {done.returncode}, not {step.code}:\n{done.stdout}"
        )
        expected = "\n".join(step.expected)
        assert fits(step.expected, done.stdout.splitlines()), (
            f"{where}\nshown:\n{expected}\nprinted:\n{done.stdout}"
        )

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """One command; the shell that the next one finds is the one that this one leaves."""
        with tempfile.NamedTemporaryFile() as left:
            done = subprocess.run(
                ["bash", "-c", f"trap 'env -0 > {left.name}' EXIT\n{command}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            exported = left.read().decode().split("\0")
        self.environment = dict(entry.split("=", 1) for entry in exported if entry)
        self.folder = Path(self.environment["PWD"])
        return done
