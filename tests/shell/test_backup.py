"""A node copied and brought back by the command, as a person does it."""

import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from atoll.ipc.attach import connect
from atoll.ipc.errors import NotAllowed
from atoll.ipc.system.state import State, Write, absolute, relative
from atoll.servers.shell import exits
from atoll.servers.state.backup.restore import restore
from atoll.servers.state.history import History
from atoll.servers.state.keyspaces import Keyspaces
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.storage.interface import Storage
from tests.kit.disk import fill, small_disk

from .conftest import HOUSE, PROGRAM, Shell, shell

IMAGE = HOUSE / "images" / "minimal.toml"
DEV = HOUSE / "images" / "dev.toml"


@pytest.fixture(scope="module")
def person() -> Iterator[Shell]:
    """A shell with a node `node` that runs, and was written to."""
    with shell() as running:
        running.said("boot", str(IMAGE), "--folder", "node", "--detach")
        try:
            yield running
        finally:
            running.said("shutdown")
        assert running.said("check", "node").endswith(": whole\n")


def write(person: Shell, names: list[str], blob: bytes) -> int:
    """Rows and blobs; gives the store's revision."""
    with connect(str(person.folder / "node")) as node:
        storage = node.open("storage", Storage)
        refs = [storage.put.now([blob]), *storage.put_many.now([name.encode() for name in names])]
        storage.refer.now([ref.hash for ref in refs], "test", names[0])
        kernel = node.keyspace("kernel", ["read", "history"])
        return kernel.head.now()


def rows(person: Shell, folder: str, at: int | None = None) -> list[dict[str, object]]:
    """All that a keyspace of a node that runs holds."""
    when = [] if at is None else ["--at", str(at)]
    found = json.loads(
        person.said("range", "references", "--node", str(person.folder / folder), *when, "--json")
    )
    assert isinstance(found, list)
    return found


def test_a_node_goes_on_elsewhere(person: Shell, tmp_path: Path) -> None:
    first = write(person, ["a", "b"], b"1" * 200_000)
    backup = person.json("backup", "kept", "--node", str(person.folder / "node"))
    assert backup["blobs"] == 3 and backup["versions"] == 2 and backup["left_out"] == []
    second = write(person, ["c"], b"1" * 200_000)
    again = person.json("backup", "kept")
    assert again["blobs"] == 1 and again["versions"] == 0
    assert again["revisions"] <= again["revision"] - backup["revision"] and again["revision"] >= second
    assert again["covers"][0]["first"] == 1 and again["covers"][-1]["last"] == again["revision"]
    assert person.said("check", "kept").endswith(": whole\n")

    elsewhere = tmp_path / "moved"
    shutil.copytree(person.folder / "kept", elsewhere)
    told = person.json("restore", str(elsewhere), "--folder", "new", "--name", "new")
    assert told["revision"] == again["revision"]
    assert person.said("check", "new").endswith(": whole\n")
    image = person.folder / "new" / "image.toml"
    assert image.read_text() == IMAGE.read_text()
    person.said("boot", str(image), "--folder", "new", "--name", "new", "--detach")
    try:
        here = str(person.folder / "new")
        assert rows(person, "new") == rows(person, "node")
        assert rows(person, "new", first) == rows(person, "node", first)
        verified = json.loads(person.said("call", "storage", "verify", "--node", here))
        assert verified["missing"] == [] and verified["damaged"] == [] and verified["blobs"] == 4
        with connect(here) as new, connect(str(person.folder / "node")) as old:
            assert new.kernel.node.now().boot > old.kernel.node.now().boot
            outlines = [each.open("state", State, ["backup"]).outline.now() for each in (new, old)]
            assert outlines[0].store != outlines[1].store
        sentence = person.refused(exits.WRONG_INPUT, "backup", "kept", "--node", here)
        assert "holds backups of another store" in sentence
    finally:
        person.said("shutdown", "--node", str(person.folder / "new"))


def test_a_moment_of_the_past(person: Shell) -> None:
    first = write(person, ["past"], b"2" * 70_000)
    with connect(str(person.folder / "node")) as node:
        state = node.keyspace("references")
        state.commit.now([Write(b"\xff later", b"x")])
        state.commit.now([Write(b"\xff later", None)])
        deleted, put = state.history.now(b"\xff later")
    covers = person.json("backup", "past")["covers"]
    assert person.json("restore", "past", "--at", str(first), "--folder", "then")["revision"] == first
    when = datetime.fromtimestamp(deleted.time / 1e9 - 2e-6).isoformat()
    restored = person.json("restore", "past", "--at", when, "--folder", "at a time")
    assert put.revision <= restored["revision"] < deleted.revision
    sentence = person.refused(exits.WRONG_INPUT, "restore", "past", "--at", "99999", "--folder", "never")
    assert sentence.startswith("revision 99999 is not in the backup, which covers revisions 1 to ")
    assert f"to {covers[-1]['last']} (" in sentence
    assert "the time 2001-" in person.refused(
        exits.WRONG_INPUT, "restore", "past", "--at", "2001-01-01", "--folder", "never"
    )
    assert not (person.folder / "never").exists()
    assert [path.name for path in person.folder.glob(".*restoring")] == []


WRONG = [
    (["restore", "nothing"], "DIR: expected the folder of a backup that was finished, got nothing"),
    (["restore", "whole", "--folder", "node"], "--folder: expected a folder that is new or empty, got"),
    (["restore", "whole", "--at", "soon"], "--at: expected a revision (1234)"),
    (["backup", "full"], "DIR: expected an empty folder, or a backup's, got"),
    (["backup", "node/inside"], "DIR: expected a folder outside of the node's own"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_command_is_one_sentence(person: Shell, words: list[str], sentence: str) -> None:
    if not (person.folder / "whole").exists():
        person.said("backup", "whole")
    (person.folder / "full").mkdir(exist_ok=True)
    (person.folder / "full" / "of something").touch()
    assert sentence in person.refused(exits.WRONG_INPUT, *words)


def test_one_backup_at_a_time(person: Shell) -> None:
    person.said("backup", "locked")
    holding = ["flock", "locked", "sh", "-c", "echo; cat"]
    with subprocess.Popen(
        holding, cwd=person.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        sentence = person.refused(exits.TRY_AGAIN, "backup", "locked")
        holder.stdin.close()
    assert "another backup or restore is at work on" in sentence
    person.said("backup", "locked")


def test_one_restore_at_a_time_into_a_folder(person: Shell) -> None:
    """Who comes second leaves what the first has made so far."""
    person.said("backup", "twice")
    begun = person.folder / ".same.restoring"
    (begun / "data").mkdir(parents=True)
    with subprocess.Popen(
        ["flock", str(begun), "sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        sentence = person.refused(exits.TRY_AGAIN, "restore", "twice", "--folder", "same")
        left = (begun / "data").is_dir()
        holder.stdin.close()
    assert "another backup or restore is at work on" in sentence
    assert left
    person.said("restore", "twice", "--folder", "same")
    assert person.said("check", "same").endswith(": whole\n")


def test_a_part_of_a_restore_that_outlives_it_keeps_others_away(person: Shell) -> None:
    person.said("backup", "whole")
    shutil.copytree(person.folder / "whole", person.folder / "stuck", dirs_exist_ok=True)
    blobs = person.folder / "stuck" / "blobs" / "server" / "need"
    (blobs / "packs").mkdir(parents=True)
    (blobs / "blobs" / "aa").mkdir(parents=True)
    endless = blobs / "blobs" / "aa" / ("aa" * 32)
    os.mkfifo(endless)  # whoever reads it waits
    command = [str(PROGRAM), "restore", "stuck", "--folder", "late"]
    with subprocess.Popen(command, cwd=person.folder, env=person.environment) as killed:
        try:
            while (part := copying_blobs(killed.pid)) is None:
                assert killed.poll() is None
            while (end := writing(endless)) is None:  # before, it may not have been told to begin
                assert killed.poll() is None
        finally:
            killed.kill()
    try:
        sentence = person.refused(exits.TRY_AGAIN, "restore", "whole", "--folder", "late")
        assert "another backup or restore is at work on" in sentence
    finally:
        signal.pidfd_send_signal(part, signal.SIGKILL)
        select.select([part], [], [])
        os.close(part)
        os.close(end)
    person.said("restore", "whole", "--folder", "late")
    assert person.said("check", "late").endswith(": whole\n")


def writing(pipe: Path) -> int | None:
    """Its end, once somebody reads at the other one."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def copying_blobs(command: int) -> int | None:
    """The part of a command that copies blobs, as a descriptor."""
    for child in Path(f"/proc/{command}/task/{command}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if b"atoll.servers.storage.backup" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return os.pidfd_open(int(child))
    return None


def test_what_is_damaged_is_named(person: Shell) -> None:
    """Of the rows and of the blobs; what was backed up before can still be had."""
    upto = person.json("backup", "rotten")["revision"]
    write(person, ["more"], b"3" * 70_000)
    person.said("backup", "rotten")
    folder = person.folder / "rotten"
    (last,) = (folder / "rows").glob(f"{upto}-*")
    whole = last.read_bytes()
    last.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    sentence = f"{last}: at byte 8: the frame of revisions"
    assert sentence in person.refused(exits.FINDINGS, "restore", "rotten", "--folder", "never")
    assert not (person.folder / "never").exists()
    (blob, *_) = [path for path in (folder / "blobs").glob("*/*/blobs/*/*") if path.stat().st_size > 70_000]
    raw = bytearray(blob.read_bytes())
    raw[66_000] ^= 1
    blob.write_bytes(raw)
    done = person.run("check", "rotten")
    assert done.returncode == exits.FINDINGS
    assert sentence in done.stdout and f"{blob}: at byte 65536 of its content" in done.stdout
    assert done.stdout.endswith("2 breaches\n")
    told = restore(folder, person.folder / "before", upto)
    assert told.revision == upto


def test_a_stopped_node(tmp_path: Path) -> None:
    with shell() as person:
        person.said("boot", str(DEV), "--folder", "node", "--detach")
        person.said("shutdown")
        first = person.json("backup", "kept")
        assert first["node"] == "dev"
        assert person.json("restore", "kept", "--folder", "new")["revision"] == first["revision"]
        person.said("boot", str(DEV), "--folder", "new", "--detach")
        assert person.json("ps", "--node", str(person.folder / "new"))[0]["state"] == "serving"
        person.said("shutdown", "--node", str(person.folder / "new"))


class Log:
    """What a writer outside of the node was told is durable: by revision its key and value."""

    def __init__(self, folder: Path) -> None:
        self.acknowledged: dict[int, tuple[bytes, bytes]] = {}
        self._folder = folder
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        with connect(str(self._folder)) as node:
            state = node.keyspace("references")
            number = 0
            while not self._ends.is_set():
                key, value = b"\xfe %d" % (number % 50), b"%d" % number * 40
                self.acknowledged[state.commit.now([Write(key, value)]).revision] = key, value
                number += 1

    def __enter__(self) -> "Log":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def as_of(self, revision: int) -> dict[bytes, bytes]:
        return {key: value for at, (key, value) in sorted(self.acknowledged.items()) if at <= revision}


def test_writers_go_on_and_backups_are_killed(person: Shell) -> None:
    command = [str(PROGRAM), "backup", "busy", "--json"]
    with Log(person.folder / "node") as log:
        reached = [person.json("backup", "busy")["revision"]]
        for begun in ("part", f"{reached[-1]}-*"):
            with subprocess.Popen(
                command, cwd=person.folder, env=person.environment, stdout=subprocess.PIPE, process_group=0
            ) as killed:
                # Until the file is there that it is to be killed beside, or it has ended without.
                while killed.poll() is None and not any((person.folder / "busy" / "rows").glob(begun)):
                    pass
                with suppress(ProcessLookupError):
                    os.killpg(killed.pid, signal.SIGKILL)
            restored = restore(person.folder / "busy", person.folder / f"killed at {begun}", None)
            assert restored.revision >= reached[-1]
        reached.append(person.json("backup", "busy")["revision"])
    assert reached == sorted(reached)
    restore(person.folder / "busy", person.folder / "last", None)
    engine = LmdbEngine(person.folder / "last", read_only=True)
    try:
        history = History(engine, str)
        assert history.head() == reached[-1]
        (keyspace,) = [each for each, name in keyspaces(engine).items() if name == "references"]
        start = absolute(keyspace, b"\xfe")
        for revision in (*reached, *random.Random(1).sample(sorted(log.acknowledged), 20)):
            if revision <= reached[-1]:
                page = history.range(start, absolute(keyspace, b"\xff"), 100, revision)
                assert {relative(item.key)[1]: item.value for item in page.items} == log.as_of(revision)
    finally:
        engine.close()


def keyspaces(engine: LmdbEngine) -> dict[int, str]:
    return {number: name for name, number in Keyspaces(engine).by_name().items()}


def test_who_may_not_copy_a_node(person: Shell) -> None:
    """The holder of a keyspace asks for the store: it is refused, and that is recorded."""
    with connect(str(person.folder / "node")) as node:
        state = node.keyspace("references")
        with pytest.raises(NotAllowed):
            state.outline.now()
        with pytest.raises(NotAllowed):
            next(iter(state.export.now(1)))
    assert any("State" in row["what"] for row in person.json("refused"))


def test_a_full_disk_is_one_sentence(person: Shell) -> None:
    person.said("backup", "fits")
    with small_disk(person.folder / "small", "size=3m") as disk:
        fill(disk / "stuffing")
        told = person.refused(exits.TRY_AGAIN, "backup", "small/kept")
        assert told.startswith("the disk that holds ") and "small/kept" in told and "free room" in told
        told = person.refused(exits.TRY_AGAIN, "restore", "fits", "--folder", "small/new")
        assert told.startswith("the disk that holds ") and "small/" in told and "free room there" in told
        assert [path.name for path in disk.iterdir() if path.name != "kept"] == ["stuffing"]
