"""Which calls are recorded, how they are listed and asked for, and how long they are kept."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.ipc.system.calls import ChunkRow, OpeningRow, keyspace_of
from atoll.ipc.system.records import LOG, LogRow, after, decode
from atoll.ipc.system.state import State
from atoll.servers.shell.recorded import Records
from tests.microkernel.nodes import booted

from .conftest import IMAGE, Recording, interface

LOAD, SIZE = 400, 40_000
"""Calls, and bytes of the argument of each: four tapes full."""
PROGRAM = Path(sys.executable).parent / "atoll"


def said(recording: Recording, *words: str) -> str:
    done = subprocess.run(
        [PROGRAM, *words, "--node", str(recording.node.folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_calls_are_listed_and_asked_for_by_sql(recording: Recording) -> None:
    id = recording.made("till", "total", lambda: recording.till.total.now("listed"))
    (row,) = json.loads(said(recording, "calls", "till", "--method", "total", "--limit", "1", "--json"))
    assert (row["id"], row["outcome"], row["recorded"]) == (id, "replied", True)
    assert row["client"].startswith("@") and row["duration"] > 0
    query = "select id, method, outcome from kernel.call where server = 'till' order by time desc limit 1"
    assert json.loads(said(recording, "sql", query, "--json")) == [
        {"id": id, "method": "Till.total", "outcome": "replied"}
    ]


def under_load(recording: Recording, server: str, call: Any) -> tuple[int, int]:
    """Several tapes full of calls, as fast as they go: how many of them are recorded, and how many were dropped."""
    state = recording.attached.keyspace(keyspace_of(server))
    records = Records(recording.attached)
    before = sum(1 for _ in records.all(server)) + records.dropped(server)
    for started in [call.start("x" * SIZE) for _ in range(LOAD)]:
        started.result()

    def counted() -> tuple[int, int]:
        return sum(1 for _ in records.all(server)), records.dropped(server)

    until(state, lambda: sum(counted()) >= before + LOAD)
    return counted()


def test_a_full_audit_drops_nothing_under_load(recording: Recording) -> None:
    recorded, dropped = under_load(recording, "till", recording.till.total)
    assert recorded >= LOAD
    assert dropped == 0


def test_without_it_calls_are_dropped_and_counted(recording: Recording) -> None:
    hasty = recording.attached.open("hasty", interface("rates", "Rates"))
    recorded, dropped = under_load(recording, "hasty", hasty.known)
    assert (recorded + dropped, dropped > 0, recorded > 0) == (LOAD, True, True)
    assert f"hasty: {dropped:,} calls of its last process" in said(recording, "calls", "hasty")


def test_of_a_sample_there_are_some(recording: Recording) -> None:
    """Of calls of a server with `audit = "sample"` one in 64: with 10,000 it is certain that there are some, and not all."""
    sampled = recording.attached.open("sampled", interface("rates", "Rates"))
    state = recording.attached.keyspace(keyspace_of("sampled"))
    head = state.head.now()
    for _ in range(10_000):
        sampled.fix.now("eur", 2.0)
    for _ in state.watch.now(head):
        break
    found = list(Records(recording.attached).all("sampled"))
    assert 0 < len(found) < 2_000
    assert all(call.outcome in ("replied", "none") and call.arguments is None for _, call in found)


def test_the_debugger_stands_where_the_handler_begins(recording: Recording) -> None:
    """On a terminal, as a person has it."""
    id = recording.made("till", "add", lambda: recording.till.add.now("debugged", 4))
    ours, theirs = pty.openpty()
    command = [PROGRAM, "replay", id, "--pdb", "--node", str(recording.node.folder)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as run:
        os.close(theirs)
        told = b""

        def until(text: bytes) -> None:
            nonlocal told
            while text not in told:
                told += os.read(ours, 4096)

        until(b"(replay) ")
        os.write(ours, b"p (key, by, self.rows.local.get(key))\n")
        until(b"('debugged', 4, None)")
        os.write(ours, b"c\n")
        until(b": same")
        assert run.wait() == 0
    os.close(ours)
    assert b"-> return self.rows.update(key" in told


def until(state: State, done: Callable[[], bool]) -> None:
    """Wait for what a change of the keyspace brings about, if it has not yet."""
    head = state.head.now()
    if not done():
        next(change for change in state.watch.now(head) if done())


def test_what_is_old_enough_is_deleted(tmp_path: Path) -> None:
    text = IMAGE.replace("[node]\n", "[node]\nkeep_log = 0\nkeep_calls = 0\n")
    with booted(tmp_path, text=text) as node:
        with node.attach() as attached:
            attached.open("till", interface("till", "Till")).total.now("a")
            attached.open("scribe", interface("scribe", "Scribe")).write.now("of the first boot")
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            log, calls = (attached.keyspace(name, ["read"]) for name in (LOG, keyspace_of("till")))

            def boots() -> set[int]:
                found = [decode(OpeningRow, value) for value in values(calls, OpeningRow.table)]
                return {row.boot for row in found} | {
                    decode(ChunkRow, value).boot for value in values(calls, ChunkRow.table)
                }

            until(log, lambda: all(decode(LogRow, value).boot == 2 for value in values(log, LogRow.table)))
            until(calls, lambda: boots() == {2})


def values(state: State, table: bytes) -> list[bytes]:
    return [item.value or b"" for item in state.range.now(table, after(table)).items]
