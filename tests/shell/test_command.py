"""The command line without a node: sentences, exit codes, what is checked before anything is asked of a
node.
"""

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.ipc import errors
from atoll.ipc.system.kernel import ConfigBinding, KeyspaceBinding, ServerBinding, SocketBinding
from atoll.ipc.system.records import after
from atoll.servers.shell import exits, printing
from atoll.servers.shell.command import run
from atoll.servers.shell.life import binding
from atoll.servers.shell.rows import ITEMS, Shown, key_of, value_of


@pytest.fixture(autouse=True)
def no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without nodes."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    monkeypatch.setenv("ATOLL_NODE", str(tmp_path / "nothing"))


WRONG = [
    ("get", exits.USAGE, "missing argument 'keyspace'; see `atoll get --help`"),
    ("nosuch", exits.USAGE, "no such command 'nosuch'; see `atoll --help`"),
    ("pss", exits.USAGE, "no such command 'pss': did you mean 'ps'? see `atoll --help`"),
    ("image", exits.USAGE, "missing command; see `atoll image --help`"),
    ("ps --xyz", exits.USAGE, "no such option: --xyz; see `atoll ps --help`"),
    ("revoke x", exits.USAGE, "see `atoll revoke --help`"),
    ("revoke 1.4294967302", exits.USAGE, "'1.4294967302' is no capability's number"),  # else it is 2.6
    ("revoke 9999999999.1", exits.USAGE, "'9999999999.1' is no capability's number"),
    ("mint 1.1 --badge 18446744073709551616 --to x", exits.USAGE, "invalid value for '--badge'"),
    ("log --after 18446744073709551616", exits.USAGE, "invalid value for '--after'"),
    (
        "load x /nowhere",
        exits.WRONG_INPUT,
        "PACKAGE: expected a folder with server.py and interface.py, got /nowhere",
    ),
    (
        "call a b [1",
        exits.WRONG_INPUT,
        """JSON: expected an object or an array, such as '{"key": "x"}' or '["x"]', got [1 (Input data was truncated)""",
    ),
    (f"call a b {'[' * 5000}", exits.WRONG_INPUT, "JSON: expected an object or an array, such as"),
    ("call a b [18446744073709551616]", exits.WRONG_INPUT, "JSON: expected whole numbers of 64 bits at most"),
    ("get rows 0x1", exits.WRONG_INPUT, "KEY: expected 0x and pairs of hexadecimal digits, got 0x1"),
    (
        "get rows k --at soon",
        exits.WRONG_INPUT,
        "--at: expected a revision (1234), a time (2026-05-01T12:00)",
    ),
    ("rollback rows --to soon", exits.WRONG_INPUT, "--to: expected a revision (1234)"),
    ("diff rows --from soon", exits.WRONG_INPUT, "--from: expected a revision (1234)"),
    ("diff rows --to soon", exits.WRONG_INPUT, "--to: expected a revision (1234)"),
    ("calls --to soon", exits.WRONG_INPUT, "--to: expected a revision (1234)"),
    ("sql select --as x=soon", exits.WRONG_INPUT, "--as: expected a revision (1234)"),
    (
        "range rows --prefix a --start b",
        exits.WRONG_INPUT,
        "--prefix: expected either --prefix or --start and --end",
    ),
    ("boot a.toml --job x", exits.WRONG_INPUT, "--job: expected one of reviews, got 'x'"),
    ("new server trio", exits.WRONG_INPUT, "NAME: expected a name that no installed package has"),
    (
        "new server Big",
        exits.WRONG_INPUT,
        "NAME: expected lower-case letters, digits and _, no keyword of Python",
    ),
]


@pytest.mark.parametrize(("line", "code", "sentence"), WRONG, ids=[line[:60] for line, _, _ in WRONG])
def test_a_wrong_input_is_one_sentence(
    line: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("atoll: ")
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


ASKING = """\
ps
top
log
refused
caps
versions
protection show state
stop state
restart state
freeze state
thaw state
swap state
shutdown
call state head
mint 1 --badge 2 --to state
grant 1 state
revoke 1
get rows k
range rows
history rows k
watch rows"""


@pytest.mark.parametrize("line", ASKING.splitlines())
def test_without_a_node_every_command_says_so(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == exits.NO_NODE
    assert "atoll boot" in capsys.readouterr().err


def test_errors_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ps", "--json"]) == exits.NO_NODE
    told = json.loads(capsys.readouterr().err)
    assert set(told) == {"error", "message", "fields"}
    assert told["error"] == "NoSuchNode"


def test_a_traceback_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    run(["ps"])
    assert "Traceback" not in capsys.readouterr().err
    assert run(["--debug", "ps"]) == exits.NO_NODE
    assert "Traceback" in capsys.readouterr().err


def test_the_program_itself(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "atoll"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("atoll 0.")
    listed = subprocess.run([program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "Usage: atoll" in listed.stdout
    closed = subprocess.run(
        f"{program} --help | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert closed.stderr == ""


def test_what_is_given_on_stdin_is_text_or_refused() -> None:
    program = Path(sys.executable).parent / "atoll"
    done = subprocess.run(
        [program, "call", "a", "b", "-"], input=b'["\xff"]', capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (exits.WRONG_INPUT, b"")
    assert b"got what is no UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


def test_completion_script_names_the_program(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "atoll"
    environment = os.environ | {
        "_ATOLL_COMPLETE": "complete_bash",
        "COMP_WORDS": "atoll pro",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [program], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == ["protection"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NodeDown(), exits.NO_NODE),
        (errors.NotAllowed("m", "write"), exits.NOT_ALLOWED),
        (errors.NotFound("server", "x"), exits.NOT_FOUND),
        (errors.BadRequest("a", "b", "c"), exits.WRONG_INPUT),
        (errors.Overloaded("x"), exits.TRY_AGAIN),
        (errors.PeerDied("m"), exits.UNKNOWN_OUTCOME),
        (errors.InternalFault("m", "ValueError"), exits.FAULT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes_say_what_to_do_next(error: errors.AtollError, code: int) -> None:
    assert exits.code(error) == code
    assert code in exits.MEANINGS


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("rows=keyspace:k", ("rows", KeyspaceBinding(keyspace="k"))),
        ("rows=keyspace:k/read+write", ("rows", KeyspaceBinding(keyspace="k", rights=["read", "write"]))),
        ("audit=server:a/write", ("audit", ServerBinding(server="a", rights=["write"]))),
        ("web=listen:127.0.0.1:80", ("web", SocketBinding(listen="127.0.0.1:80"))),
    ],
)
def test_a_need_is_read(text: str, bound: object) -> None:
    assert binding(text) == bound


def test_a_need_of_configuration_is_messagepack() -> None:
    name, bound = binding('config=config:{"step": 2}')
    assert name == "config"
    assert isinstance(bound, ConfigBinding)
    assert bytes(bound.value) == b"\x81\xa4step\x02"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rows",
        "rows=",
        "rows=keyspace:",
        "rows=folder:x",
        "config=config:[1]",
        'config=config:{"a":18446744073709551616}',
        "config=config:" + '{"a":' * 5000,
    ],
    ids=lambda text: text[:40],
)
def test_a_wrong_need_is_refused(text: str) -> None:
    with pytest.raises(errors.BadRequest, match="--need"):
        binding(text)


@pytest.mark.parametrize(("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b""), (b"", b"")])
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert after(prefix) == end


def test_keys_and_values_as_a_person_reads_them() -> None:
    assert key_of("rain") == b"rain"
    assert key_of("0x00ff") == b"\x00\xff"
    assert value_of(b"\x2a") == 42
    assert value_of(b"\x81\xa1a\x01") == {"a": 1}
    assert value_of(b"plain text") == "plain text"
    assert value_of(b"\xc1\xff") == "0xc1ff"


def test_check_of_what_is_no_store(tmp_path: Path) -> None:
    assert run(["check", str(tmp_path)]) == exits.WRONG_INPUT


LONG = [
    Shown(key="rain", value="w" * 20_000, revision=12, time=1, deleted=False),
    Shown(key="k" * 30, value=["x", 1], revision=13, time=2, deleted=False),
]


def test_a_terminal_shows_the_beginning_of_a_long_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a row; into a pipe nothing is cut."""
    monkeypatch.setenv("COLUMNS", "90")
    printing.draw(LONG, ITEMS)
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.endswith("www…") and len(first) <= 90
    assert second.endswith('["x",1]')
    monkeypatch.delenv("COLUMNS")
    printing.draw(LONG, ITEMS)
    assert "w" * 20_000 in capsys.readouterr().out


def test_a_table_too_wide_for_the_terminal_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no column can be done without the terminal breaks the lines; nothing is squeezed or lost."""
    monkeypatch.setenv("COLUMNS", "20")
    printing.draw(LONG[1:], ITEMS)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["REVISION", "TIME", "KEY", "VALUE"]
    assert rows[0].endswith('["x",1]')
    assert "".join(rows).count("k") == 30


def test_what_a_locale_cannot_show_is_escaped_as_json() -> None:
    codecs.register_error(printing.ESCAPE, printing.escaped)
    for text in ("schön", "€", "𝄞", "plain"):
        assert json.loads('"' + text.encode("ascii", printing.ESCAPE).decode() + '"') == text
