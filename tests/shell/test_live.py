"""Each command in a running node, its output read as a person reads it, and its errors."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import msgspec
import pytest

from atoll.ipc.attach import connect
from atoll.ipc.system.state import Write
from atoll.servers.shell import exits
from atoll.servers.state.watchers import BEHIND
from tests.shell.conftest import HOUSE, PROGRAM, Shell, shell


@pytest.fixture(scope="module")
def tally(node: Shell) -> Shell:
    """A server of a person's own, as `new` writes it, with a few rows."""
    node.said("new", "server", "tally")
    node.said("load", "tally", "tally")
    node.said("call", "tally", "add", '{"key": "rain", "by": 2}')
    node.said("call", "tally", "add", '["rain", 40]')
    return node


@pytest.fixture(scope="module")
def spare(tally: Shell) -> Shell:
    """With a keyspace `spare.rows` whose server is stopped: anything may be written there."""
    tally.said("load", "spare", "tally", "--level", "process")
    tally.said("stop", "spare")
    return tally


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# looking ---------------------------------------------------------------------------------------------------


def test_ps_lists_what_runs(tally: Shell) -> None:
    head, *rows = lines(tally.said("ps"))
    assert head[:5] == ["SERVER", "STATE", "PID", "LEVEL", "VERSION"]
    assert [row[:2] for row in rows] == [[name, "serving"] for name in ("state", "storage", "tally")]
    assert all(re.fullmatch("[0-9a-f]{8}", row[4]) for row in rows)
    told = {row["server"]: row for row in tally.json("ps")}
    assert told["tally"]["calls"] >= 2
    assert told["tally"]["level"] == "sandbox"
    assert told["state"]["memory"] > 1 << 20


@pytest.mark.parametrize("words", ["ps", "caps", "versions", "top --count 1", "protection show storage"])
def test_tables_fit_a_narrow_terminal(tally: Shell, words: str) -> None:
    """80 columns: no line is longer, and no word is broken into two."""
    narrow = tally.said(*words.split(), COLUMNS="80")
    assert max(map(len, narrow.splitlines())) <= 80
    word = re.compile(r"\b(?![0-9a-f]{8}\b)[a-z]{4,}\b")  # a version's hash is no word
    assert set(word.findall(narrow)) == set(word.findall(tally.said(*words.split())))


def test_lines_into_a_pipe_are_whole(tally: Shell) -> None:
    assert {len(row) for row in lines(tally.said("ps"))[1:]} == {12}
    assert len(tally.said("caps").splitlines()) == 1 + len(tally.json("caps"))


def test_top(tally: Shell) -> None:
    head, *rows = lines(tally.said("top", "--every", "0.1"))
    assert "CALLS/S" in head
    assert [row[0] for row in rows] == ["state", "storage", "tally"]
    assert len(tally.said("top", "--every", "0.1", "--json").splitlines()) == 1
    looks = tally.said("top", "--every", "0.1", "--count", "2", "--json").splitlines()
    assert [[row["server"] for row in json.loads(look)] for look in looks] == [
        ["state", "storage", "tally"]
    ] * 2


def test_log_says_what_happened(tally: Shell) -> None:
    tally.said("swap", "tally")
    rows = [json.loads(line) for line in tally.said("log", "tally", "--json").splitlines()]
    assert {row["level"] for row in rows if row["text"].startswith("swap: ")} == {"info"}
    later = tally.said("log", "--after", str(rows[-1]["position"]), "tally")
    assert later == f"no lines of tally after {rows[-1]['position']}\n"
    assert " tally " in tally.said("log", "tally")


def test_log_follows(tally: Shell) -> None:
    with subprocess.Popen(
        [PROGRAM, "log", "tally", "--follow"],
        cwd=tally.folder,
        env=tally.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        before = len(tally.said("log", "tally").splitlines())
        for _ in range(before):
            following.stdout.readline()
        tally.said("swap", "tally")
        assert "swap: " in following.stdout.readline()
        following.terminate()


def test_refused_and_versions(tally: Shell) -> None:
    assert tally.said("refused") == "nothing was refused\n"
    assert tally.json("refused", "tally") == []
    rows = tally.json("versions", "tally")
    assert [row["running"] for row in rows] == [True]
    assert rows[0]["version"][:8] in tally.said("versions")


def test_protection_shows_each_mechanism(tally: Shell) -> None:
    told = tally.json("protection", "show", "storage")
    assert (told["wanted"], told["level"]) == ("sandbox", "sandbox")
    text = tally.said("protection", "show", "storage")
    assert text.startswith("storage: level sandbox\n")
    assert all(mechanism["name"] in text for mechanism in told["mechanisms"])


def test_completion_knows_the_servers(tally: Shell) -> None:
    words = {"_ATOLL_COMPLETE": "complete_bash", "COMP_WORDS": "atoll log ta", "COMP_CWORD": "2"}
    assert tally.run(**words).stdout.split() == ["tally"]


# the store -------------------------------------------------------------------------------------------------


def test_rows_and_their_history(tally: Shell) -> None:
    assert tally.said("get", "tally.rows", "rain") == "42\n"
    head, row = lines(tally.said("range", "tally.rows"))
    assert head == ["REVISION", "TIME", "KEY", "VALUE"]
    assert row[2:] == ["rain", "42"]
    newer, older = tally.json("history", "tally.rows", "rain")
    assert (newer["value"], older["value"]) == (42, 2)
    assert newer["revision"] > older["revision"]


def test_a_value_that_is_none_is_not_taken_for_a_deletion(spare: Shell) -> None:
    with connect(str(spare.folder / "node")) as node:
        state = node.keyspace("spare.rows")
        first, _, gone, _ = (
            state.commit.now([Write(b"nil", value)]).revision for value in (b"\xc0", b"\x07", None, b"\xc0")
        )
        last = state.commit.now([Write(b"nil", b"\xc0")]).revision
    try:
        assert lines(spare.said("range", "spare.rows", "--prefix", "nil"))[1][-1] == "null"
        told = [row[-1] for row in lines(spare.said("history", "spare.rows", "nil"))[1:]]
        assert told == ["null", "null", "(deleted)", "7", "null"]
        assert [row[-1] for row in lines(spare.said("blame", "spare.rows", "nil"))[1:]] == told
        deleted = [row.get("deleted", False) for row in spare.json("history", "spare.rows", "nil")]
        assert deleted == [False, False, True, False, False]
        watched = spare.said("watch", "spare.rows", "--prefix", "nil", "--at", str(first - 1), "--count", "3")
        assert [line.split(" = ")[1] for line in watched.splitlines()] == ["null", "7", "(deleted)"]
        for start, end, change in (
            (first - 1, first, "added null"), (first, first + 1, "null -> 7"), (first + 1, gone, "removed 7"),
            (first + 1, last, "7 -> null"), (first, gone, "removed null"),
        ):  # fmt: skip
            told_of = spare.said(
                "diff", "spare.rows", "--keys", "nil", "--from", str(start), "--to", str(end)
            )
            assert told_of.splitlines()[1].endswith(change)
    finally:
        with connect(str(spare.folder / "node")) as node:
            node.keyspace("spare.rows").commit.now([Write(b"nil")])


HUGE = "9" * 26


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (exits.WRONG_INPUT, ("get", "tally.rows", "rain", "--at", HUGE)),
        (exits.WRONG_INPUT, ("get", "tally.rows", "rain", "--at", "\u00b2")),
        (exits.WRONG_INPUT, ("diff", "tally.rows", "--to", HUGE)),
        (exits.WRONG_INPUT, ("replay", f"1.{HUGE}.1")),
        (exits.USAGE, ("range", "tally.rows", "--limit", HUGE)),
        (exits.USAGE, ("history", "tally.rows", "rain", "--limit", HUGE)),
        (exits.USAGE, ("revoke", f"1.{HUGE}")),
    ],
)
def test_a_number_that_is_none_is_a_sentence(tally: Shell, code: int, words: tuple[str, ...]) -> None:
    assert "fault" not in tally.refused(code, *words)


def test_a_range_ends_at_its_limit_and_not_where_a_page_of_the_store_does(spare: Shell) -> None:
    """Rows of 200 kB: two fit a page."""
    keys = [f"wide {number}" for number in range(7)]
    with connect(str(spare.folder / "node")) as node:
        state = node.keyspace("spare.rows")
        for key in keys:
            state.commit.now([Write(key.encode(), key.encode() * 30_000)])
        words = "range", "spare.rows", "--prefix", "wide"
        try:
            assert [row["key"] for row in spare.json(*words)] == keys
            assert [row["key"] for row in spare.json(*words, "--reverse", "--limit", "6")] == keys[:0:-1]
            assert [row["key"] for row in spare.json(*words, "--at", "0s", "--limit", "10001")] == keys
            assert "more after" not in spare.said(*words)
            assert spare.said(*words, "--limit", "6").splitlines()[-1].startswith("more after these 6: ")
        finally:
            state.commit.now([Write(key.encode()) for key in keys])


def test_any_moment_is_read_again(tally: Shell) -> None:
    newer, older = tally.json("history", "tally.rows", "rain")
    moment = datetime.fromtimestamp(older["time"] / 1e9 + 1e-6).isoformat()
    assert tally.said("get", "tally.rows", "rain", "--at", str(older["revision"])) == "2\n"
    assert tally.said("get", "tally.rows", "rain", "--at", moment) == "2\n"
    assert [row["value"] for row in tally.json("range", "tally.rows", "--at", str(older["revision"]))] == [2]
    assert len(tally.json("history", "tally.rows", "rain", "--at", moment)) == 1
    assert len(tally.json("history", "tally.rows", "rain", "--at", moment, "--limit", "1")) == 1
    assert tally.json("range", "tally.rows", "--prefix", "sun") == []
    before = str(older["revision"] - 1)
    assert "'rain'" in tally.refused(exits.NOT_FOUND, "get", "tally.rows", "rain", "--at", before)
    watched = tally.said("watch", "tally.rows", "--at", before, "--count", "2").splitlines()
    assert [line.split()[0] for line in watched] == [str(older["revision"]), str(newer["revision"])]
    assert watched[1].endswith(" rain = 42")


def test_a_watch_of_puts_or_of_deletions_alone(tally: Shell) -> None:
    with connect(str(tally.folder / "node")) as node:
        state = node.keyspace("tally.rows")
        first = state.commit.now([Write(b"only/a", b"\1"), Write(b"only/b", b"\2")]).revision
        second = state.commit.now([Write(b"only/a", None)]).revision
        third = state.commit.now([Write(b"only/b", None)]).revision
    of = ("watch", "tally.rows", "--prefix", "only/", "--at", str(first - 1))
    puts = tally.said(*of, "--only", "puts", "--count", "1").splitlines()
    assert [line.split()[0] for line in puts] == [str(first)] * 2
    deletes = tally.said(*of, "--only", "deletes", "--count", "2").splitlines()
    assert [(line.split()[0], line.split()[2]) for line in deletes] == [
        (str(second), "only/a"), (str(third), "only/b"),
    ]  # fmt: skip
    assert all(line.endswith(" = (deleted)") for line in deletes)
    tally.refused(exits.USAGE, *of, "--only", "sometimes")


def test_a_watch_that_is_behind_says_so_once_and_leaves_nothing_out(tally: Shell) -> None:
    count = 2 * BEHIND
    with connect(str(tally.folder / "node")) as node:
        state = node.keyspace("tally.rows")
        before = state.head.now()
        begun = [state.commit.start([Write(b"late", msgspec.msgpack.encode(n))]) for n in range(count)]
        for each in begun:
            each.result()
        state.commit.now([Write(b"late", None)])
    of = ("watch", "tally.rows", "--prefix", "late", "--at", str(before), "--count", str(count))
    done = tally.run(*of)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [str(n) for n in range(count)]
    (told,) = done.stderr.splitlines()
    behind = int(re.fullmatch(r"atoll: (\d+) revisions behind; nothing is left out", told)[1])  # type: ignore[index]
    with connect(str(tally.folder / "node")) as node:  # others write, too
        assert BEHIND < behind <= node.keyspace("tally.rows").head.now() - before
    changes = [json.loads(line) for line in tally.run(*of, "--json").stdout.splitlines()]
    assert len(changes) == count and changes[0]["behind"] > BEHIND and changes[-1]["behind"] == 0


def test_how_far_back_and_what_is_pinned(tally: Shell) -> None:
    head, *rows = lines(tally.said("horizons"))
    assert head[:3] == ["KEYSPACE", "KEPT", "HORIZON"]
    kept = {row[0]: row[1:6] for row in rows}
    assert list(kept) == sorted(kept) and {"kernel", "kernel/log", "references", "tally.rows"} <= kept.keys()
    assert kept["tally.rows"] == ["for", "ever", "-", "-", "0"]
    (one,) = tally.json("horizons", "tally.rows")
    assert (one["keyspace"], one["horizon"]["revision"]) == ("tally.rows", 0)
    assert tally.said("pins") == "nothing is pinned\n"
    assert "tally.rows" in tally.refused(exits.NOT_FOUND, "pins", "tally.row")
    revision = tally.json("history", "tally.rows", "rain")[1]["revision"]
    pin = (
        "import atoll; state = atoll.connect().keyspace('tally.rows'); "
        f"state.pin.now('set 1', {revision}, 'what ppo-3 learnt from')"
    )
    program = [sys.executable, "-c", pin]
    subprocess.run(program, env=tally.environment, cwd=tally.folder, check=True)
    (row,) = tally.json("pins")
    assert (row["keyspace"], row["name"], row["revision"]) == ("tally.rows", "set 1", revision)
    assert "what ppo-3 learnt from" in tally.said("pins", "tally.rows")
    assert tally.json("horizons", "tally.rows")[0]["pins"] == 1
    assert tally.json("pins", "references") == []
    with connect(str(tally.folder / "node")) as node:
        state = node.keyspace("tally.rows")
        pinned = str(state.head.now())
        state.unpin.now("set 1")
    assert tally.json("pins") == []
    assert tally.json("pins", "--at", pinned) == [row]
    assert tally.json("pins", "--at", str(revision)) == []


# a server's life -------------------------------------------------------------------------------------------


@pytest.fixture
def gauge(tally: Shell) -> Iterator[Shell]:
    """A second server, of the same package, that a test may stop, freeze and kill."""
    if "gauge" not in [row["server"] for row in tally.json("ps")]:
        said = tally.said(
            "load", "gauge", "tally", "--level", "process", "--need", "rows=keyspace:tally.rows"
        )
        assert re.fullmatch(r"gauge serves Tally at level process, pid \d+\n", said)
    yield tally
    tally.said("restart", "gauge")


def test_stop_and_restart(gauge: Shell) -> None:
    assert gauge.said("stop", "gauge") == "gauge is stopped\n"
    assert "gauge is stopped: " in gauge.said("ps")
    assert "is stopped; this needs it running" in gauge.refused(
        exits.DECLARED, "call", "gauge", "get", '["rain"]'
    )
    assert re.fullmatch(r"gauge is serving, pid \d+\n", gauge.said("restart", "gauge"))
    assert gauge.said("call", "gauge", "get", '["rain"]') == "42\n"


def test_freeze_and_thaw(gauge: Shell) -> None:
    assert gauge.json("freeze", "gauge", "--reason", "to look at it")["state"] == "frozen"
    assert "gauge is frozen: to look at it" in gauge.said("ps")
    assert "this needs it serving" in gauge.refused(exits.DECLARED, "freeze", "gauge")
    assert gauge.said("thaw", "gauge").startswith("gauge is serving")
    assert "this needs it frozen" in gauge.refused(exits.DECLARED, "thaw", "gauge")


def test_a_killed_server_is_back_for_the_next_call(gauge: Shell) -> None:
    before = gauge.row("gauge")
    subprocess.run(["kill", "-9", str(before["pid"])], check=True)
    assert gauge.said("call", "gauge", "get", '["rain"]') == "42\n"
    after = gauge.row("gauge")
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1
    assert "SIGKILL" in gauge.said("log", "gauge")


def test_swap_to_a_version_and_back(gauge: Shell) -> None:
    old = gauge.row("gauge")["version"]
    source = gauge.folder / "tally" / "interface.py"
    source.write_text(source.read_text().replace("take less", "take fewer"))
    swapped = gauge.json("swap", "gauge", "tally")
    assert swapped["old"] == old != swapped["new"]
    take = ("call", "gauge", "add", '["rain", -99]')
    assert gauge.refused(exits.DECLARED, *take) == "'rain' has 42 left: take fewer, or add first"
    back = gauge.said("swap", "gauge", "--version", old[:8])
    assert back.startswith(f"gauge: {swapped['new'][:8]} -> {old[:8]} at level process, paused ")
    assert gauge.refused(exits.DECLARED, *take) == "'rain' has 42 left: take less, or add first"


def test_a_level_is_changed_while_it_runs(gauge: Shell) -> None:
    assert gauge.json("swap", "gauge", "--level", "sandbox")["level"] == "sandbox"
    assert gauge.said("protection", "show", "gauge").startswith("gauge: level sandbox\n")
    assert gauge.json("swap", "gauge", "--level", "process")["level"] == "process"


def test_call(tally: Shell) -> None:
    assert tally.run("call", "tally", "get", "-", stdin='["rain"]').stdout == "42\n"
    item = json.loads(tally.said("call", "tally", "changes", "--count", "1"))
    assert item["values"] == {"rain": 2}


# capabilities ----------------------------------------------------------------------------------------------


def test_capabilities_are_given_and_taken(gauge: Shell) -> None:
    (root,) = [row["number"] for row in gauge.json("caps", "storage") if row["interface"] == "Storage"]
    text = f"{root >> 32}.{root & 0xFFFFFFFF}"
    given = gauge.json("grant", text, "gauge", "--rights", "read", "--expires", "1000")["number"]
    minted = gauge.json("mint", str(root), "--badge", "7", "--to", "gauge")["number"]
    held = {row["number"]: row for row in gauge.json("caps", "gauge")}
    assert held[given]["rights"] == ["read"] and held[given]["expires"] > 0
    assert held[minted]["badge"] == 7 and held[minted]["lasting"]
    shown = f"{minted >> 32}.{minted & 0xFFFFFFFF}"
    assert [row for row in lines(gauge.said("caps", "gauge")) if row[0] == shown]
    assert gauge.said("revoke", shown) == f"revoked 1: {shown} and all derived from it\n"
    assert gauge.json("revoke", str(given)) == {"revoked": 1}
    assert not {given, minted} & {row["number"] for row in gauge.json("caps", "gauge")}
    assert shown in gauge.refused(exits.NOT_FOUND, "revoke", shown)
    assert "the root of storage" in gauge.refused(exits.WRONG_INPUT, "revoke", text)
    nope = gauge.refused(exits.NOT_FOUND, "grant", text, "gauge", "--rights", "reed")
    assert nope == "there is no right of storage.Storage called 'reed': did you mean 'read'?"
    less = str(gauge.json("mint", text, "--badge", "8", "--to", "gauge", "--rights", "read")["number"])
    nope = gauge.refused(exits.NOT_ALLOWED, "grant", less, "state", "--rights", "read")
    assert nope.startswith("grant needs the right 'delegate', and this capability holds 'read'")


# what is wrong ---------------------------------------------------------------------------------------------

WRONG = [
    (exits.NOT_FOUND, "call taly get []", "there is no server 'taly': did you mean 'tally'?"),
    (exits.NOT_FOUND, "call tally gte []", "there is no method of Tally called 'gte': did you mean 'get'?"),
    (exits.NOT_FOUND, "call xyz get []", "there is no server 'xyz': choose one of "),
    (exits.NOT_FOUND, "call tally get [] --interface Tale", "did you mean 'Tally'?"),
    (
        exits.WRONG_INPUT,
        'call tally get {"kex":"rain"}',
        "Tally.get: expected arguments named key, got `kex`; did you mean `key`?",
    ),
    (exits.WRONG_INPUT, 'call tally add ["rain","much"]', "Tally.add(by): expected `int`, got `str`"),
    (exits.WRONG_INPUT, "call tally get {", "JSON: expected an object or an array"),
    (exits.NOT_FOUND, "stop taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "swap tally --version 0123abcd", "there is no version of tally '0123abcd'"),
    (exits.WRONG_INPUT, "load tally tally", "which there is: `atoll swap tally PACKAGE` replaces it"),
    (exits.NOT_FOUND, "load t2 tally --need rows=keyspace:tally.rows/reed", "did you mean 'read'?"),
    (exits.NOT_FOUND, "load t2 tally --need rows=keyspace:tally.rowz", "did you mean 'tally.rows'?"),
    (
        exits.NOT_FOUND,
        "load t2 tally --need rwos=keyspace:tally.rowz",
        "there is no need of t2 called 'rwos': did you mean 'rows'?",
    ),
    (exits.WRONG_INPUT, "load t2 tally --need rows=server:storage", "expected a keyspace, got a server"),
    (
        exits.NOT_FOUND,
        "load t2 tally --need nope=server:storage",
        "there is no need of t2 called 'nope': choose one of rows",
    ),
    (exits.WRONG_INPUT, "load t2 tally --level sandbx", "did you mean 'sandbox'?"),
    (exits.NOT_FOUND, "get tally.rowz rain", "there is no keyspace 'tally.rowz': did you mean 'tally.rows'?"),
    (
        exits.NOT_FOUND,
        "get tally.rows snow",
        "no value in tally.rows under the key 'snow': choose one of rain",
    ),
    (exits.NOT_FOUND, "get tally.rows rian", "under the key 'rian': did you mean 'rain'?"),
    (
        exits.NOT_FOUND,
        "get tally.rows rain --at 1",
        "in tally.rows as of 1 under the key 'rain': see `atoll history tally.rows rain`",
    ),
    (
        exits.NOT_FOUND,
        "history tally.rows rian",
        "there is no kept version in tally.rows of the key 'rian': did you mean 'rain'?",
    ),
    (
        exits.NOT_FOUND,
        "history tally.rows rain --at 1",
        "no kept version in tally.rows as of 1 of the key 'rain': see `atoll history tally.rows rain`",
    ),
    (exits.NOT_FOUND, "log taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "refused taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "versions taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "caps taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "protection show taly", "did you mean 'tally'?"),
    (exits.NOT_FOUND, "revoke 9.9", "there is no capability '9.9': see `atoll caps`"),
    (exits.NO_NODE, "ps --node xyz", "there is no node 'xyz': choose one of node"),
    (exits.NO_NODE, "ps --node nodes", "there is no node 'nodes': did you mean 'node'?"),
    (exits.NO_NODE, "ps --node ./xyz", "there is no node 'xyz': choose one of node"),
    (exits.WRONG_INPUT, "clean --folder nosuch", "expected the folder of a node, got nosuch, which is none"),
    (
        exits.WRONG_INPUT,
        "check nosuch",
        "expected a node's name, its folder, a store's, or a backup's, got nosuch",
    ),
]


@pytest.mark.parametrize(("code", "line", "sentence"), WRONG, ids=[line for _, line, _ in WRONG])
def test_what_is_wrong_is_one_sentence(tally: Shell, code: int, line: str, sentence: str) -> None:
    assert sentence in tally.refused(code, *line.split())


def test_errors_for_programs(tally: Shell) -> None:
    done = tally.run("--debug", "call", "taly", "get", "--json")
    assert "Traceback" in done.stderr
    told = json.loads(tally.run("call", "taly", "get", "--json").stderr)
    assert told["error"] == "NotFound"
    assert told["fields"]["what"] == "server" and told["fields"]["nearest"] == "tally"
    declared = json.loads(tally.run("call", "tally", "add", '["snow", -1]', "--json").stderr)
    assert declared["error"] == "Spent"
    assert declared["fields"] == {"key": "snow", "left": 0}
    assert declared["message"] == "'snow' has 0 left: take less, or add first"
    assert json.loads(tally.run("ps", "--bad", "--json").stderr)["error"] == "Usage"


def test_a_call_is_given_up_at_its_deadline(gauge: Shell) -> None:
    gauge.said("freeze", "gauge")
    late = gauge.refused(exits.TRY_AGAIN, "call", "gauge", "get", '["rain"]', "--deadline", "0.2")
    assert late.startswith("Tally.get did not end within 0.2 s")
    gauge.said("thaw", "gauge")


def test_looking_for_a_node_is_no_refusal(tally: Shell) -> None:
    """Without a name the command asks each socket whether somebody answers: that is nothing to record."""
    home = str(tally.folder)
    found = json.loads(tally.said("ps", "--json", ATOLL_NODE="", ATOLL_HOME=home))
    assert "tally" in {row["server"] for row in found}
    assert tally.said("refused") == "nothing was refused\n"


@pytest.mark.parametrize("line", ["watch tally.rows --at 1", "log --follow"])
def test_a_reader_that_leaves_ends_what_would_go_on(tally: Shell, line: str) -> None:
    """As with `| head`, also while nothing more is written."""
    tally.said("swap", "tally")
    with subprocess.Popen(
        [PROGRAM, *line.split()], cwd=tally.folder, env=tally.environment, stdout=subprocess.PIPE
    ) as going:
        assert going.stdout is not None
        going.stdout.readline()
        going.stdout.close()
        assert going.wait() == exits.OK


def test_what_nobody_hears_is_said_in_vain_and_no_fault(tally: Shell) -> None:
    """A reader that left before the first line, while the command is still at work."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [PROGRAM, "restart", "tally"],
            cwd=tally.folder,
            env=tally.environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (exits.OK, b"")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_any_locale_will_do(tally: Shell, locale: dict[str, str]) -> None:
    """Arguments are UTF-8 in every locale; what it cannot print is escaped as in JSON."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"} | locale
    said = tally.said("call", "tally", "changes", '{"after": 0}', "--count", "1", **plain)
    assert json.loads(said)["values"] == {"rain": 2}
    done = tally.run("call", "tally", "gét", **plain)
    assert done.returncode == exits.NOT_FOUND
    assert "called 'gét': did you mean 'get'?" in done.stderr.replace("\\u00e9", "é")


def test_a_value_is_cut_on_a_terminal_and_whole_in_a_pipe(tally: Shell) -> None:
    said = tally.said("range", "tally.rows", COLUMNS="30")
    assert "rain" in said and "42" in said
    assert not [line for line in said.splitlines() if line != line.rstrip()]


# the node --------------------------------------------------------------------------------------------------


def test_two_nodes_by_name_on_one_host() -> None:
    """Each is found by its name; without one the command asks which. Boot, shutdown, check, clean, plan."""
    with shell() as both:
        del both.environment["ATOLL_NODE"]
        image = str(HOUSE / "images" / "dev.toml")
        for name in ("one", "two"):
            both.said("boot", image, "--name", name, "--detach")
        try:
            first, second = (both.json("ps", "--node", name) for name in ("one", "two"))
            assert first[0]["pid"] != second[0]["pid"]
            assert "expected one of one, two, since several run" in both.refused(exits.WRONG_INPUT, "ps")
            again = both.run("boot", image, "--name", "one", "--detach")
            assert again.returncode == exits.WRONG_INPUT
            assert "a node runs in " in again.stderr
        finally:
            assert both.said("shutdown", "--node", "one") == "one is down\n"
            assert both.said("shutdown", "--node", "two") == "two is down\n"
        deep = f"./{'d' * 60}/{'e' * 60}"  # longer than the address of a socket may be
        both.said("boot", image, "--folder", deep, "--detach")
        assert both.said("shutdown", "--node", deep) == "dev is down\n"
        assert both.said("clean", "--folder", "one") == "nothing was left\n"
        assert both.said("check", "one").endswith(": whole\n")
        assert both.run("ps").stderr == "atoll: no node runs: start one with `atoll boot IMAGE`\n"
        assert both.refused(exits.NO_NODE, "ps", "--node", "one") == (
            "node 'one' is down: boot it again with `atoll boot`"
        )


def test_a_plan_changes_nothing(node: Shell) -> None:
    plan = node.said("boot", str(HOUSE / "images" / "dev.toml"), "--folder", "other", "--plan")
    assert "add    server state" in plan
    assert not (node.folder / "other" / "attach.sock").exists()


def test_an_image_is_checked_and_drawn(node: Shell) -> None:
    image = str(HOUSE / "images" / "minimal.toml")
    assert "is an image that can be booted" in node.said("image", "check", image)
    assert "storage (sandbox)" in node.said("image", "check", image, "--graph")
    assert node.json("image", "check", image)["servers"] == ["state", "storage"]
    assert node.json("image", "check", "minimal")["graph"]["levels"]["storage"] == "sandbox"
    bad = str(HOUSE / "tests" / "images" / "wrong" / "no-state.toml")
    wrong = node.run("image", "check", bad)
    assert wrong.returncode == exits.WRONG_INPUT
    assert "expected a [server.state]" in wrong.stderr
    told = json.loads(node.run("image", "check", bad, "--json").stderr)
    assert told["error"] == "ImageRefused"
    assert told["fields"]["problems"][0]["expected"].startswith("a [server.state]")
    assert "did you mean" in node.refused(exits.NOT_FOUND, "boot", image.replace("minimal", "minimul"))
    assert "did you mean 'minimal'?" in node.refused(exits.NOT_FOUND, "boot", "minimul")


def test_doctor_names_what_the_host_can_do(node: Shell) -> None:
    done = node.run("doctor")
    assert "level process" in done.stdout
    lacking = [row for row in json.loads(node.run("doctor", "--json").stdout)["findings"] if row["needed"]]
    missing = any(row["verdict"] == "missing" for row in lacking)
    assert done.returncode == (exits.FINDINGS if missing else exits.OK)
