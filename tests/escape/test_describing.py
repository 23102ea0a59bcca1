"""A package is asked what it is before anybody trusts it: its code runs, and reaches nothing."""

import os
import socket
from pathlib import Path

import pytest
import trio

from atoll.ipc.runtime.describe import Description
from atoll.microkernel import descriptions
from atoll.microkernel.descriptions import describe_apart
from atoll.microkernel.protection import Subject, plan, probe

MISSING = plan("sandbox", Subject(name="describe"), probe()).missing
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no sandbox here: {'; '.join(map(str, MISSING))}")

HONEST = """
from atoll.ipc import Interface, Serves, call

class Plain(Interface):
    @call("read")
    def get(self) -> int: ...

class Server(Serves[Plain]):
    @Plain.get.serve
    def get(self) -> int:
        return 1
"""


def package(tmp_path: Path, code: str) -> Path:
    folder = tmp_path / "packages" / "odd"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    (folder / "__init__.py").write_text("")
    (folder / "server.py").write_text(code)
    return folder


def said(tmp_path: Path, code: str) -> Description | str:
    """What describing it gives; the code may raise what it found out."""
    return trio.run(describe_apart, {"odd": package(tmp_path, code)}, {})["odd"]


def attempt(tmp_path: Path, action: str) -> str:
    """What came of an action of the package's import: "done: ..." or the error's name."""
    found = said(
        tmp_path,
        f"import os, signal, socket, sys\ntry:\n    what = {action}\nexcept OSError as error:\n"
        f"    what = None\n    raise RuntimeError('stopped by ' + type(error).__name__) from None\n"
        f"raise RuntimeError(f'done: {{what!r}}')\n",
    )
    assert isinstance(found, str)
    return found.removeprefix("RuntimeError: ")


def test_an_honest_package_is_described(tmp_path: Path) -> None:
    found = said(tmp_path, HONEST)
    assert isinstance(found, Description)
    assert [(offer.name, offer.methods) for offer in found.interfaces] == [("Plain", ("get",))]


def test_it_reads_no_file_of_the_user(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the user")
    assert attempt(tmp_path, f"open({str(secret)!r}).read()") == "stopped by FileNotFoundError"


def test_it_writes_neither_to_the_user_nor_to_its_own_package(tmp_path: Path) -> None:
    for number, place in enumerate((tmp_path / "mark", tmp_path / "0" / "packages" / "odd" / "mark")):
        outcome = attempt(tmp_path / str(number), f"open({str(place)!r}, 'w')")
        assert outcome.startswith("stopped by"), outcome
        assert not place.exists()


def test_it_reaches_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        outcome = attempt(tmp_path, f"socket.create_connection({address!r})")
    assert outcome.startswith("stopped by"), outcome


def test_it_signals_and_sees_nobody(tmp_path: Path) -> None:
    outcome = attempt(tmp_path, f"os.kill({os.getpid()}, 0)")
    assert outcome.startswith("stopped by"), outcome
    (tmp_path / "more").mkdir()
    seen = attempt(tmp_path / "more", "[name for name in os.listdir('/proc') if name.isdigit()]")
    assert seen == "done: ['1']"


def test_it_is_not_root(tmp_path: Path) -> None:
    outcome = attempt(tmp_path, "os.getuid(), os.setuid(0)")
    assert outcome.startswith("stopped by"), outcome


def test_one_that_kills_itself_is_a_sentence(tmp_path: Path) -> None:
    found = said(tmp_path, "import os\nos._exit(7)\n")
    assert found == "its import exited with status 7"


def test_one_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptions, "LONGEST", 0.2)
    assert "no answer from its import" in str(said(tmp_path, "while True: pass\n"))


def test_one_that_answers_for_itself_is_believed_of_itself_alone(tmp_path: Path) -> None:
    """It holds the socket on which it is to answer; what it writes there is checked like everything else."""
    flood = "import os\nwhile True:\n    os.write(3, b'x' * 65536)\n"
    assert "says more of itself than" in str(said(tmp_path / "flood", flood))
    nonsense = "import os\nos.write(3, b'[1]')\nos._exit(0)\n"
    assert "its answer is none" in str(said(tmp_path / "nonsense", nonsense))


def test_one_that_eats_memory_is_bounded(tmp_path: Path) -> None:
    found = said(tmp_path, "held = bytearray(8 << 30)\n")
    assert str(found).startswith("MemoryError")


@pytest.mark.parametrize("text", ["'\\udcff'", "'\\N{PILE OF POO}' * 1_000_000"])
def test_why_a_package_cannot_be_imported_is_told_whatever_its_error_says(tmp_path: Path, text: str) -> None:
    """A reply holds it, and it is text: else whoever loads it hears of the reply's size, or of a process that ended."""
    fault = said(tmp_path, f"raise ValueError({text})")
    assert isinstance(fault, str)
    assert fault.startswith("ValueError: ")
    assert len(fault.encode()) < 1 << 16
