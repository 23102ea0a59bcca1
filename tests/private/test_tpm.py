"""Secrets in a TPM 2, emulated by swtpm: kept over its power, replaced, cut short at each command."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest
from atoll.servers.shell import tpm
from atoll.servers.shell.tpm import Line, Tpm

PROGRAM = shutil.which("swtpm")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="swtpm is not installed (apt-get install swtpm)")


@contextmanager
def powered(folder: Path) -> Iterator[Path]:
    """The emulator's socket, until the power is cut."""
    end = folder / "tpm"
    command = [
        str(PROGRAM), "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server", f"type=unixio,path={end}",
        "--ctrl", f"type=unixio,path={folder / 'control'}", "--flags", "not-need-init,startup-clear",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not _answers(end):
            assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            yield end
        finally:
            process.kill()
    end.unlink()


def _answers(end: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(str(end)) == 0


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[Path]:
    with powered(tmp_path) as end:
        yield end


def test_a_secret_outlives_the_power(tmp_path: Path) -> None:
    with powered(tmp_path) as end, tpm.opened(end, "node") as held:
        assert held.secrets() == []
        secret = held.add()
        assert len(bytes.fromhex(secret)) == tpm.SECRET and held.secrets() == [secret]
    with powered(tmp_path) as end, tpm.opened(end, "node") as held:
        assert held.secrets() == [secret]
        assert Tpm(held._line, "another node").secrets() == []


def test_a_new_secret_stands_beside_the_old_until_that_is_given_up(chip: Path) -> None:
    with tpm.opened(chip, "node") as held:
        old = held.add()
        new = held.add()
        assert sorted(held.secrets()) == sorted([old, new]) and old != new
        with pytest.raises(BadRequest, match="one secret of this node, got two"):
            held.add()
        held.keep_only(new)
        assert held.secrets() == [new]
        third = held.add()
        held.keep_only(third)
        assert held.secrets() == [third]


class Cut:
    """A line that breaks before a command."""

    def __init__(self, line: Line, left: int) -> None:
        self._line = line
        self._left = left

    def exchange(self, command: bytes) -> bytes:
        if not self._left:
            raise ConnectionError("the power went")
        self._left -= 1
        return self._line.exchange(command)


def test_whatever_the_step_one_secret_is_left_that_was_there_before(chip: Path) -> None:
    with tpm.opened(chip, "node") as held:
        before = held.add()
        for left in range(100):
            cut = Tpm(Cut(held._line, left), "node")
            try:
                new = cut.add()
                cut.keep_only(new)
            except ConnectionError:
                found = held.secrets()
                assert before in found or len(found) == 1
                kept = before if before in found else found[0]
                held.keep_only(kept)
                assert held.secrets() == [kept]
                before = kept
            else:
                assert held.secrets() == [new]
                break
        else:
            pytest.fail("it never came to the end")


def test_no_tpm_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(BadRequest, match="a TPM 2 that this user may use"),
        tpm.opened(tmp_path / "none", "node"),
    ):
        pass
