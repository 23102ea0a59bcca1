"""Moments compared, versions traced to whom they are due, keys put back: on a live node, by the command."""

import math
import re
import subprocess
import sys
import time

import msgspec
import pytest

from atoll.ipc.attach import connect
from atoll.ipc.durable.rows import OPEN, WorkflowRow, encode
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.system.state import Write
from atoll.servers.shell import exits
from atoll.servers.shell.rows import pages

from .conftest import PROGRAM, Shell


@pytest.fixture(scope="module")
def tally(node: Shell) -> Shell:
    """A server of a person's own that counted rain twice and snow once."""
    node.said("new", "server", "tally")
    node.said("load", "tally", "tally", "--level", "process")
    for key in ("rain", "rain", "snow"):
        node.said("call", "tally", "add", f'["{key}", 2]')
    return node


def moments(tally: Shell, key: str) -> list[int]:
    """The revisions at which a key was written, oldest first."""
    return [row["revision"] for row in reversed(tally.json("history", "tally.rows", key))]


def test_what_is_different_between_two_moments(tally: Shell) -> None:
    first, second = moments(tally, "rain")
    (row,) = tally.json("diff", "tally.rows", "--from", str(first), "--to", str(second))
    assert (row["key"], row["before"], row["after"], row["revision"]) == ("rain", 2, 4, second)
    told = tally.said("diff", "tally.rows", "--from", str(first - 1))
    assert re.search(r"rain +added 4\n", told) and re.search(r"snow +added 2\n", told)
    told = tally.said("diff", "tally.rows", "--from", str(first), "--keys", "r")
    assert "2 -> 4" in told and "snow" not in told
    assert (
        tally.said("diff", "tally.rows", "--from", str(second), "--to", str(second))
        == "nothing is different\n"
    )
    assert "before revision" in tally.refused(
        exits.WRONG_INPUT, "diff", "tally.rows", "--from", str(second), "--to", str(first)
    )


def test_a_watch_goes_on_after_a_transaction_that_comes_in_parts(node: Shell) -> None:
    """Without `--count` it ends with its reader alone."""
    keys = [f"part/{number}" for number in range(4)]
    with connect(str(node.folder / "node")) as attached:
        state = attached.keyspace("references")
        before = state.head.now()
        large = state.begin.now(60.0)
        for key in keys:
            value = msgspec.msgpack.encode("v" * 400_000)
            state.commit.now([Write(key.encode(), value)], transaction=large)
        state.finish.now(large)
        state.commit.now([Write(key.encode(), None) for key in keys])
    watching = [str(PROGRAM), "watch", "references", "--prefix", "part/", "--at", str(before)]
    with subprocess.Popen(
        watching, cwd=node.folder, env=node.environment, stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        told = [watch.stdout.readline().partition(":")[2].split()[1:] for _ in range(2 * len(keys))]
    assert [[word[:9] for word in words] for words in told] == [
        *([key, "=", "v" * 9] for key in keys),
        *([key, "=", "(deleted)"] for key in keys),
    ]


def test_workflows_of_others_are_listed_beside_rows_that_are_none(tally: Shell) -> None:
    """Whoever writes a keyspace can put anything there."""
    endless = WorkflowRow(
        id="late", badge=0, method="Tally.wait", arguments=b"", status="running", version="", token=b"", begun=math.inf
    )  # fmt: skip
    wrong = {"references": (b"0/bad", b"\xc1"), "tally.rows": (b"0/late", encode(endless))}
    with connect(str(tally.folder / "node")) as attached:
        states = {name: attached.keyspace(name) for name in wrong}
        for name, (id, row) in wrong.items():
            states[name].commit.now([Write(OPEN + id, row)])
        try:
            told = {row["keyspace"]: row for row in tally.json("flow", "ls")}
            assert (told["tally.rows"]["id"], told["tally.rows"]["status"]) == ("late", "running")
            assert told["references"]["status"] == "unreadable"
            assert "late" in tally.said("flow", "ls") and "late" in tally.said("flow", "show", "late")
        finally:
            for name, (id, _) in wrong.items():
                states[name].commit.now([Write(OPEN + id, None)])


def test_what_is_different_in_the_node_itself(tally: Shell) -> None:
    before = tally.json("history", "tally.rows", "snow")[0]["revision"]
    tally.said("freeze", "tally", "--reason", "to see it stand")
    tally.said("thaw", "tally")
    rows = tally.json("diff", "kernel", "--from", str(before), "--table", "event")
    assert [(row["after"]["kind"], row["table"]) for row in rows] == [("freeze", "event"), ("thaw", "event")]
    assert all(row["key"] == f"1 {row['after']['sequence']}" for row in rows)
    everything = tally.json("diff", "--from", str(before))
    assert {row["keyspace"] for row in everything} >= {"kernel"}
    (server,) = (row for row in tally.json("diff", "--table", "server") if row["key"] == "tally")
    assert server["before"] is None and server["after"]["level"] == "process"
    assert "'server'" in tally.refused(exits.NOT_FOUND, "diff", "--table", "serve")
    assert "--table" in tally.refused(exits.WRONG_INPUT, "diff", "tally.rows", "--table", "server")


def head(tally: Shell) -> str:
    """The last revision now, once everything before it is a row."""
    tally.said("call", "tally", "add", '["tick", 1]')
    return str(tally.json("history", "tally.rows", "tick", "--limit", "1")[0]["revision"])


def test_the_node_as_it_was(tally: Shell) -> None:
    """Each view is the same as of a moment as it was then, whatever happened since."""
    tally.said("freeze", "tally", "--reason", "to see it stand")
    events = tally.json("diff", "kernel", "--table", "event")
    frozen = next(str(row["revision"]) for row in reversed(events) if row["after"]["kind"] == "freeze")
    caps, protection = tally.json("caps", "tally"), tally.json("protection", "show", "tally")
    versions, image, row = tally.json("versions"), tally.json("image", "show"), tally.row("tally")
    tally.said("thaw", "tally")
    between = head(tally)
    tally.said("swap", "tally", "--level", "seccomp")
    tally.said("stop", "tally")
    stopped = str(tally.json("diff", "kernel", "--table", "server")[-1]["revision"])

    def was(at: str) -> dict[str, object]:
        return next(row for row in tally.json("ps", "--at", at) if row["server"] == "tally")

    then = was(frozen)
    assert (then["state"], then["pid"], then["reason"]) == ("frozen", row["pid"], "to see it stand")
    assert (was(between)["state"], was(between)["level"]) == ("serving", "process")
    assert (was(stopped)["state"], was(stopped)["pid"]) == ("stopped", 0)
    assert "frozen: to see it stand" in tally.said("ps", "--at", frozen)
    lasting = [each for each in caps if each["lasting"]]
    assert [each for each in tally.json("caps", "tally", "--at", between) if each["lasting"]] == lasting
    assert tally.json("versions", "--at", between) == versions
    assert tally.json("image", "show", "--at", between) == image
    past = tally.json("protection", "show", "tally", "--at", between)
    assert (past["level"], past["wanted"]) == (protection["level"], protection["wanted"])
    assert past["mechanisms"] == [each["name"] for each in protection["mechanisms"] if each["in_force"]]
    assert tally.json("protection", "show", "tally")["level"] == "seccomp"
    assert "freeze: to see it stand" in tally.said("log", "tally", "--at", between)
    assert "swap" not in tally.said("log", "tally", "--at", between)
    assert tally.json("refused", "--at", between) == []
    assert "--at" in tally.refused(exits.WRONG_INPUT, "log", "--at", between, "--follow")
    tally.said("restart", "tally")


def test_each_version_is_traced_to_whom_it_is_due(tally: Shell) -> None:
    newer, older = tally.json("blame", "tally.rows", "rain")
    assert (older["value"], newer["value"]) == (2, 4)
    for row in (newer, older):
        assert row["by"] == "tally" and row["note"] == "Tally.add"
        assert re.fullmatch(r"@\d+ .+", row["asked"])
    assert newer["trace"] != older["trace"]
    assert "'snow'" in tally.refused(exits.NOT_FOUND, "blame", "tally.rows", "snew")
    (boot,) = tally.json("blame", "kernel", "0x62" + (1).to_bytes(8).hex())
    assert boot["by"] in ("", "kernel") and boot["value"]["epoch"] == 1


def write_reserved(tally: Shell) -> str:
    """A row where workflows have theirs; its key."""
    key = "0xff" + b"row".hex()
    program = (
        "import atoll; from atoll.ipc.system.state import Write; "
        f"atoll.connect().keyspace('tally.rows').commit.now([Write(bytes.fromhex('{key[2:]}'), b\"a workflow's\")])"
    )
    subprocess.run([sys.executable, "-c", program], env=tally.environment, check=True)
    return key


def test_keys_are_put_back_as_they_were(tally: Shell) -> None:
    tally.said("call", "tally", "add", '["hail", 1]')
    first = moments(tally, "rain")[0]
    rows = tally.json("rollback", "tally.rows", "--to", str(first), "--dry-run")
    found = {row["key"]: (row["before"], row["after"]) for row in rows}
    assert found.items() >= {"hail": (1, None), "rain": (4, 2), "snow": (2, None)}.items()
    assert tally.said("get", "tally.rows", "rain") == "4\n"
    done = tally.json("rollback", "tally.rows", "--to", str(first), "--keys", "r")
    assert done["keys"] == 1
    assert tally.said("get", "tally.rows", "rain") == "2\n"
    assert tally.said("call", "tally", "get", '["rain"]') == "2\n"  # its server sees it
    assert tally.said("get", "tally.rows", "snow") == "2\n"
    newest = tally.json("blame", "tally.rows", "rain")[0]
    assert (newest["note"], newest["revision"]) == (f"rollback to {first}", done["revision"])
    assert newest["by"].startswith("@") and newest["asked"] == ""
    assert f"{len(found) - 1} keys are as they were" in tally.said(
        "rollback", "tally.rows", "--to", str(first)
    )
    assert "snow" in tally.refused(exits.NOT_FOUND, "get", "tally.rows", "snow")
    assert "nothing to roll back" in tally.said("rollback", "tally.rows", "--to", str(first))
    tally.said("rollback", "tally.rows", "--to", str(done["revision"] - 1))  # and forth again
    assert tally.said("call", "tally", "get", '["rain"]') == "4\n"
    tally.said("call", "tally", "add", '["rain", 1]')
    begun = write_reserved(tally)
    tally.said("rollback", "tally.rows", "--to", str(first))
    assert (
        tally.json("history", "tally.rows", begun)[0]["value"] == "a workflow's"
    )  # is not undone with what it did
    tally.said("rollback", "tally.rows", "--to", str(first), "--keys", "0xff")
    assert tally.json("history", "tally.rows", begun)[0]["value"] is None
    assert "kernel" in tally.refused(exits.WRONG_INPUT, "rollback", "kernel", "--to", "1")


@pytest.fixture(scope="module")
def spare(tally: Shell) -> Shell:
    """With a keyspace `spare.rows` whose server is stopped: anything may be written there."""
    tally.said("load", "spare", "tally", "--level", "process")
    tally.said("stop", "spare")
    return tally


def test_more_is_put_back_than_a_message_holds(spare: Shell) -> None:
    """Rows of 100 kB, as feedback has them."""
    keys = [f"wide {number:02}" for number in range(30)]
    with connect(str(spare.folder / "node")) as node:
        state = node.keyspace("spare.rows")
        for key in keys:
            then = state.commit.now([Write(key.encode(), msgspec.msgpack.encode("then" * 25_000))]).revision
        state.commit.now([Write(key.encode(), msgspec.msgpack.encode("now")) for key in keys])
    done = spare.json("rollback", "spare.rows", "--to", str(then), "--keys", "wide")
    assert done["keys"] == len(keys)
    rows = spare.json("range", "spare.rows", "--prefix", "wide")
    assert [(row["key"], row["value"][:4], row["revision"]) for row in rows] == [
        (key, "then", done["revision"]) for key in keys
    ]
    (newest, *_) = spare.json("blame", "spare.rows", keys[0])
    assert newest["note"] == f"rollback to {then}" and newest["by"].startswith("@")


def test_all_pages_as_of_a_time_are_of_one_state() -> None:
    """Also where something is committed meanwhile that bears no later time; forwards and in reverse."""
    store = MemoryStore()
    state = store.state(store.state().make_keyspace.start("rows").result())
    state.commit.now([Write(key, b"then") for key in (b"a", b"b", b"c")])
    for reverse in (False, True):
        found = []
        for page in pages(state, b"", b"", time.time() + 3600, 1, reverse):
            found += [item.value for item in page]
            state.commit.now([Write(key, b"now") for key in (b"a", b"b", b"c")])
        assert len(found) == 3 and len(set(found)) == 1
