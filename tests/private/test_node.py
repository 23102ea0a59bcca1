"""Private keyspaces on a node: what lies on its disk, who is given keys, what is left after a purge. One node, told as a
person does; each test has subjects of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from atoll.ipc.attach import Node, connect
from atoll.ipc.errors import InternalFault, NotAllowed, NotFound, Purged, Sealed
from atoll.ipc.naming import badge_number
from atoll.ipc.private.envelope import BEGIN, label_in
from atoll.ipc.system.keys import LABEL, Keys, NotReleased, tag_of
from atoll.microkernel.disclosure import ways
from atoll.servers.keys.keyring import Keyring, Unreadable
from atoll.servers.keys.root import FileRoot
from atoll.servers.shell import exits
from tests.microkernel.nodes import wait_for_end
from tests.shell.conftest import Shell, shell

from .nodes import PACKAGES, diary, image
from .packages.diary.interface import Diary, Entry, Told
from .packages.front.interface import Front
from .test_resident import locked
from .thief import Read, copy_of, files, holding, in_backup, in_store, read

PHRASE = "a phrase that was planted"
SAM = "sam-whose-name-is-planted"
DIARY = badge_number("diary")


@pytest.fixture(scope="module")
def person() -> Iterator[Shell]:
    """A shell with a node `node` that has a private keyspace."""
    with shell() as running:
        (running.folder / "image.toml").write_text(image(more='audit = "full"'))
        running.said("boot", "image.toml", "--folder", "node", "--detach")
        try:
            yield running
        finally:
            running.said("shutdown")
        assert running.said("check", "node").endswith(": whole\n")


def home(person: Shell, name: str = "node") -> Path:
    return person.folder / name


def ring(folder: Path) -> Keyring:
    """What a thief makes of a folder `data/keys`."""
    found = Keyring(folder / "keyring", FileRoot(folder / "root"))
    found.open(None, 0)
    return found


def kept_keys(person: Shell, name: str) -> Path:
    """A copy of the node's `data/keys` as it is now."""
    copy = person.folder / name
    shutil.copytree(home(person) / "data" / "keys", copy)
    return copy


def kept_store(person: Shell, name: str) -> Path:
    """A copy of the node's store as it is now."""
    return copy_of(home(person) / "data" / "state", person.row("state")["pid"], person.folder / name)


def told(found: Read) -> list[str]:
    """What people said, of diary entries that opened."""
    return [msgspec.msgpack.decode(words, type=Entry).text for words in found.words]


def kill(person: Shell, server: str) -> None:
    pid = person.row(server)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def test_no_file_of_the_node_has_the_words(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("scan", SAM, PHRASE)
        assert found.append.now("scan", " twice").text == f"{PHRASE} twice"
        with pytest.raises(InternalFault, match="which raised RuntimeError: this is a bug"):
            found.fail.now(PHRASE)
        (line,) = [each for each in node.kernel.logs.now(follow=False) if "Diary.fail" in each.text]
        assert "its text may be private" in line.fields["traceback"] and "in fail" in line.fields["traceback"]
        kill(person, "diary")
        assert found.read.now("scan") == Entry(SAM, f"{PHRASE} twice")
        person.said("swap", "diary", "--level", "sandbox")  # what it has in memory is handed over
        found.write.now("plain", SAM, "words that are sealed")
        node.keyspace("keys", ["read", "write"]).commit.now([_plain(b"words in the clear")])
    backup = person.json("backup", "scanned", "--node", str(home(person)))
    assert sorted(backup["left_out"]) == ["keys/keyring", "keys/root"]
    assert "on purpose" in person.said("backup", "scanned", "--node", str(home(person)))
    person.said("keys", "copy", "scanned keys")
    person.said(
        "restore", "scanned", "--folder", "restored", "--name", "restored", "--keyring", "scanned keys"
    )
    for name in ("node", "scanned", "restored"):
        place = home(person, name)
        assert holding(place, b"words in the clear"), f"the scan of {name} finds what is there"
        assert holding(place, PHRASE.encode()) == [] and holding(place, SAM.encode()) == []
    assert person.said("get", "diary", "scan").startswith("(sealed, ")


def test_what_code_logs_of_an_error_has_no_words(person: Shell) -> None:
    """By the usual means, which tell its text: that was a row in the clear."""
    with connect(str(home(person))) as node:
        diary(node).grumble.now("words of an error")
        noted = (each for each in node.kernel.logs.now() if each.text == "noted")
        for line in (next(noted), next(noted)):
            assert "in grumble" in line.fields["traceback"], "as it is told where it was raised"
            assert "words of an error" not in str(line.fields)


def _plain(value: bytes) -> object:
    from atoll.ipc.system.state import Write

    return Write(b"plain", value)


def test_after_a_purge_nothing_that_was_ever_kept_opens(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        for number in range(20):
            found.write.now(f"gone {number}", "ann", f"what ann said {number}")
            found.write.now(f"kept {number}", f"bob {number}", f"what bob said {number}")
        person.said("backup", "before", "--node", str(home(person)))
        old_keys, old_store = kept_keys(person, "old keys"), kept_store(person, "old store")
        pinned = node.keyspace("diary", ["pin"]).pin.now("training set", why="what a model was trained on")
        done = person.json("purge", "ann")
        assert (done["holding"], done["repeated"], done["keyspaces"]) == ([], False, 1)
        with pytest.raises(Purged):
            found.read.now("gone 3")
        assert found.past.now("gone 3") == [Told("gone 3", None, True)]
        assert found.as_of.now("kept 3", pinned.revision) == Entry("bob 3", "what bob said 3")
        with pytest.raises(Purged):
            found.as_of.now("gone 3", pinned.revision)
        assert found.read.now("kept 3") == Entry("bob 3", "what bob said 3")
    again = person.run("purge", "-", "--keyspace", "diary", stdin="ann\n")
    assert "ann had been purged before" in again.stdout
    # Everything that was ever on the disk, with today's keyring and root key; with those of then it is seen to be there.
    today, then = ring(home(person) / "data" / "keys"), ring(old_keys)
    label = bytes(1) + tag_of(today.index(DIARY), "ann")
    new_store, backup = kept_store(person, "new store"), person.folder / "before"
    for rows in (in_store(old_store), in_store(new_store), in_backup(backup)):
        found = read(rows, today, DIARY)
        texts = told(found)
        assert {f"what bob said {number}" for number in range(20)} <= set(texts)
        assert not [text for text in texts if "ann" in text]
        assert found.closed == [label] * 20
        assert {f"what ann said {number}" for number in range(20)} <= set(told(read(rows, then, DIARY)))
    for place in (old_store, new_store):
        labels = {
            content[at.end() : at.end() + LABEL]
            for content in map(Path.read_bytes, files(place))
            for at in re.finditer(BEGIN, content)
        }
        assert label in labels and today.key(DIARY, label) == b"", "its ciphertext stays, and no key for it"
    # What is left of the old keyring on the disk is sealed under a root key that is gone.
    shutil.copy(home(person) / "data" / "keys" / "root" / "root.key", old_keys / "root" / "root.key")
    with pytest.raises(Unreadable, match="its root key does not open it"):
        ring(old_keys)


def test_a_backup_from_before_a_purge_gives_the_others_words_back(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("r gone", "rita", "first")
        found.write.now("r kept", "rolf", "second")
    person.said("backup", "rest", "--node", str(home(person)))
    person.said("purge", "rita")
    assert person.said("keys", "copy", "newest") == "newest: keyring/keyring, root/root.key\n"
    person.said("restore", "rest", "--folder", "again", "--name", "again", "--keyring", "newest")
    with booted(person, "again") as node:
        with pytest.raises(Purged):
            diary(node).read.now("r gone")
        assert diary(node).read.now("r kept") == Entry("rolf", "second")
        assert diary(node).write.now("r new", "rolf", "third")


@contextmanager
def booted(person: Shell, name: str) -> Iterator[Node]:
    person.said("boot", "image.toml", "--folder", name, "--name", name, "--detach")
    try:
        with connect(str(home(person, name))) as node:
            yield node
    finally:
        person.said("shutdown", "--node", str(home(person, name)))


def test_a_purge_outlives_every_process(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("o gone", "olga", "first")
        found.write.now("o kept", "otto", "second")
        assert found.forget.now("olga").holding == []
        for server in ("keys", "diary", "state"):
            kill(person, server)
            with pytest.raises(Purged):
                found.read.now("o gone")
            assert found.read.now("o kept") == Entry("otto", "second")
        again = found.forget.now("olga")
        assert again.repeated
        state = node.keyspace("keys", ["read"])
        rows = [item.key for item in state.range.now(b"purge/", b"purge0").items]
        assert f"purge/{again.number:016x}/{DIARY:016x}".encode() in rows


def test_keys_are_for_servers_that_fit_the_policy_alone(person: Shell) -> None:
    with connect(str(home(person))) as node:
        keys = node.open("keys", Keys)
        with pytest.raises(NotReleased, match="a person's"):
            next(iter(keys.hold.now()))
        with pytest.raises(NotReleased):
            keys.release.now([bytes(LABEL)])
        with pytest.raises(NotAllowed):
            node.open("keys", Keys, ["observe"]).purge.now("sam")
        with pytest.raises(NotFound, match="channel that you serve"):
            node.kernel.measurement.now(1)
    package = Path(__file__).parent / "packages" / "diary"
    person.said("load", "other", str(package), "--need", "words=keyspace:diary")
    with connect(str(home(person))) as node, pytest.raises(Sealed, match="loaded by hand"):
        node.open("other", Diary).write.now("x", "sam", "words")
    person.said("stop", "other")
    package = Path(__file__).parent.parent / "microkernel" / "packages" / "counter"
    refused = person.refused(
        exits.WRONG_INPUT, "load", "plain", str(package), "--need", "rows=keyspace:diary"
    )
    assert "expected one that is not private, got a private keyspace: diary" in refused
    person.said("swap", "diary", "--level", "process")
    with connect(str(home(person))) as node, pytest.raises(Sealed, match="level 'process'"):
        diary(node).write.now("fits", "sam", "too weak")
    person.said("swap", "diary", "--level", "sandbox")
    with connect(str(home(person))) as node:
        diary(node).write.now("fits", "sam", "again")


def test_a_swap_of_the_keys_server_is_not_noticed(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("s gone", "sue", "first")
        found.write.now("s kept", "stan", "second")
        person.said("swap", "keys", "--level", "seccomp")
        assert found.read.now("s gone") == Entry("sue", "first")
        assert found.forget.now("sue").holding == []
        with pytest.raises(Purged):
            found.read.now("s gone")
        person.said("swap", "keys", "--level", "sandbox")
        with pytest.raises(Purged):
            found.read.now("s gone")
        assert found.read.now("s kept") == Entry("stan", "second")


def test_who_does_not_let_go_is_named(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("z", "zoe", "words")
        person.said("freeze", "diary")
        done = node.open("keys", Keys).with_(deadline=2.0).purge.now("zoe")
        assert done.holding == ["diary"]
        person.said("thaw", "diary")
        while True:  # it hears of it before it answers anybody, but for what it has read already
            try:
                assert found.read.now("z") == Entry("zoe", "words")
            except Purged:
                break
        assert node.open("keys", Keys).purge.now("zoe").holding == []


def test_who_holds_keys_as_their_server_crashes_is_named(person: Shell) -> None:
    """The next process knew of nobody who had any, and said that all had let go."""
    with connect(str(home(person))) as node:
        found, keys = diary(node), node.open("keys", Keys)
        found.write.now("c", "cleo", "words")
        person.said("freeze", "diary")
        kill(person, "keys")
        keys.keyring.now()  # the next process: its start is no part of what the purge waits for
        assert keys.with_(deadline=2.0).purge.now("cleo").holding == ["diary"]
        person.said("thaw", "diary")
        assert keys.purge.now("cleo").holding == []
        with pytest.raises(Purged):
            found.read.now("c")


def test_nobody_else_can_read_the_keyring(person: Shell) -> None:
    folder = home(person) / "data" / "keys"
    for place in (folder / "keyring", folder / "root"):
        assert place.stat().st_mode & 0o077 == 0
        for file in files(place):
            assert file.stat().st_mode & 0o777 == 0o600
            assert file.stat().st_uid == person.row("keys")["uid"]
    for server in ("keys", "diary", "state"):
        pid = person.row(server)["pid"]
        (core,) = [
            line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line
        ]
        assert core.split()[4:6] == ["0", "0"]
        if os.geteuid() == 0:  # what cannot be dumped is root's in /proc, whoever runs it
            assert Path(f"/proc/{pid}/mem").stat().st_uid == 0
    if os.geteuid() == 0:
        assert person.row("keys")["uid"] not in (0, person.row("diary")["uid"], person.row("state")["uid"])


def test_their_memory_is_locked_or_it_is_said_that_it_is_not(person: Shell) -> None:
    may = subprocess.run(
        [sys.executable, "-c", "from atoll.microkernel.protection.process import may_lock; print(may_lock())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip() == "True"  # fmt: skip
    for server in ("keys", "diary"):
        status = Path(f"/proc/{person.row(server)['pid']}/status").read_text()
        assert (locked(status) > 0) == may
    assert locked(Path(f"/proc/{person.row('state')['pid']}/status").read_text()) == 0
    row = person.json("keys", "show")
    assert (row["swappable"] == "") == may and ("RLIMIT_MEMLOCK" in row["swappable"]) != may
    told = "memory with keys: locked" if may else "memory with keys: a process here may lock 8 MiB"
    assert told in person.said("keys", "show")


def test_a_rollback_brings_back_what_was_sealed(person: Shell) -> None:
    with connect(str(home(person))) as node:
        first = diary(node).write.now("b", "bill", "as it was")
        diary(node).write.now("b", "bill", "as it is")
    person.said("rollback", "diary", "--keys", "b", "--to", str(first))
    assert "who was purged: that stands" in person.refused(exits.WRONG_INPUT, "rollback", "keys", "--to", "1")
    with connect(str(home(person))) as node:
        assert diary(node).read.now("b") == Entry("bill", "as it was")


SEALED = r'"\(sealed, \d+ bytes\)"'


def test_sql_opens_nothing_whoever_asks(person: Shell) -> None:
    """Who runs the node included: every row of every table, now and as they were, has values as the store has them."""
    words, subject = "words that were asked for by SQL", "una-who-is-asked-for"
    with connect(str(home(person))) as node:
        first = diary(node).write.now("sql", subject, words)
        assert diary(node).append.now("sql", ", twice").text == f"{words}, twice"
        node.keyspace("keys", ["read", "write"]).commit.now([_plain(b"words in the clear")])
    (row,) = person.json("sql", "select key, value from diary where key = 'sql'")
    assert re.fullmatch(SEALED, row["value"]), row
    asked = "select operation, value, note from store.change where keyspace = 'diary' and key = 'sql'"
    changes = person.json("sql", asked)
    assert [change["operation"] for change in changes] == ["put", "put"]
    assert all(re.fullmatch(SEALED, change["value"]) for change in changes)
    assert person.json("sql", "select value from diary where key = 'sql'", "--at", str(first))
    for moment in ((), ("--at", str(first))):
        tables = [(row["schema"], row["name"]) for row in person.json("sql", "show tables", *moment)]
        assert {("main", "diary"), ("main", "keys"), ("store", "change")} <= set(tables)
        assert not [name for schema, name in tables if schema == "diary"], "it publishes none of them"
        rows = [f'select to_json(t)::varchar as row from "{a}"."{b}" t' for a, b in tables]
        every = person.said("sql", " union all ".join(rows), *moment)
        assert words not in every and subject not in every
        assert moment or "words in the clear" in every, "what is not sealed is found so"


def test_who_may_ask_for_keys_is_in_the_graph(person: Shell) -> None:
    told = person.said("image", "check", "image.toml", "--graph")
    assert "-> state.keyspace diary  read, write, history\n" in told
    assert "-> keys.Keys             use, purge\n" in told


def test_a_new_root_key(person: Shell) -> None:
    with connect(str(home(person))) as node:
        diary(node).write.now("n", "nora", "words")
        before = kept_keys(person, "before rotation")
        row = person.json("keys", "rotate", "--seeds")
        assert (row["root"], row["locked"], row["generations"]) == ("file", "", 2)
        diary(node).write.now("n 2", "nora", "more")
        kill(person, "keys")
        kill(person, "diary")
        assert diary(node).read.now("n") == Entry("nora", "words")
        assert diary(node).read.now("n 2") == Entry("nora", "more")
        assert diary(node).forget.now("nora").holding == []
        for key in ("n", "n 2"):
            with pytest.raises(Purged):
                diary(node).read.now(key)
    shutil.copy(home(person) / "data" / "keys" / "root" / "root.key", before / "root" / "root.key")
    with pytest.raises(Unreadable):
        ring(before)
    assert (home(person) / "data" / "keys" / "root" / "root.key").stat().st_mode & 0o777 == 0o600
    told = person.said("keys", "show")
    assert "a file of mode 0600" in told and "a software stand-in" in told


def test_a_backup_from_before_new_seeds_opens_with_the_newest_keyring(person: Shell) -> None:
    with connect(str(home(person))) as node:
        found = diary(node)
        found.write.now("g gone", "gus", "first")
        found.write.now("g kept", "gil", "second")
        person.said("backup", "old seeds", "--node", str(home(person)))
        before = _generation(found, "g kept")
        assert person.json("keys", "rotate", "--seeds")["generations"] == before + 2
        found.write.now("g kept", "gil", "third")
        assert _generation(found, "g kept") == before + 1
        found.forget.now("gus")
    person.said("keys", "copy", "new seeds")
    person.said("restore", "old seeds", "--folder", "seeded", "--name", "seeded", "--keyring", "new seeds")
    with booted(person, "seeded") as node:
        found = diary(node)
        assert (found.read.now("g kept"), _generation(found, "g kept")) == (Entry("gil", "second"), before)
        with pytest.raises(Purged):
            found.read.now("g gone")
        found.append.now("g kept", " again")
        assert _generation(found, "g kept") == before + 1, "what comes is sealed by the new seeds"
        assert [told.text for told in found.past.now("g kept")] == ["second again", "second"]
        found.forget.now("gil")  # in both generations
        assert [told.purged for told in found.past.now("g kept")] == [True, True]


def _generation(found: Diary, key: str) -> int:
    """By whose seeds a value is sealed."""
    label = label_in(found.raw.now(key))
    assert label is not None
    return label[0]


RECORDED = f"""
[server.front]
package = "{PACKAGES}/front"
record = true
needs = {{ diary = {{ server = "diary", rights = ["read"] }} }}
"""
NO_RECORD = "no record of a server that talks with one that has a private keyspace"


def test_who_is_told_what_is_private_is_not_recorded(person: Shell) -> None:
    (person.folder / "recorded.toml").write_text(image(more=RECORDED))
    refused = person.run("image", "check", "recorded.toml")
    assert refused.returncode == exits.WRONG_INPUT
    assert NO_RECORD in refused.stderr and "found true (front -> diary)" in refused.stderr
    package = str(PACKAGES / "front")
    load = ("load", "front", package, "--need", "diary=server:diary")
    told = person.refused(exits.WRONG_INPUT, *load, "--record")
    assert NO_RECORD in told and "one of front (front -> diary)" in told
    person.said(*load)
    load = ("load", "behind", package, "--need", "front=server:front")
    assert "one of behind (behind -> front -> diary)" in person.refused(exits.WRONG_INPUT, *load, "--record")
    person.said(*load)
    with connect(str(home(person))) as node:
        words = "words that a front is told"
        diary(node).write.now("told", "tom", words)
        assert node.open("behind", Front).ask.now("told") == words
    for server in ("behind", "front"):  # what it would have recorded would be on the disk when it has ended
        person.said("stop", server)
    assert holding(home(person), words.encode()) == []


def test_who_tells_a_private_server_something_is_not_recorded() -> None:
    calls = [("diary", "desk"), ("desk", "front"), ("diary", "keys"), ("apart", "desk"), ("apart", "keys")]
    found = list(ways(calls, ["front", "desk", "diary", "apart"], {"diary"}))
    assert [(way.recorded, str(way)) for way in found] == [
        ("front", "diary -> desk -> front"),
        ("desk", "diary -> desk"),
    ]
