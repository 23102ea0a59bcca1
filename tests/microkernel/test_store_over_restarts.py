"""What the store promises over restarts of itself and of the kernel, in real nodes: a watch has no gap, every revision is
there and says who wrote it, and a limit that was raised gives room."""

import os
import signal
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NodeDown
from atoll.ipc.system.state import State, Write
from atoll.servers.state import layout
from atoll.servers.state.check import check_folder
from atoll.servers.state.lmdb_engine import LmdbEngine

from .nodes import booted, fill_store

IMAGE = """
[image]
name = "test"

[keyspace.rows]
[keyspace.others]

[server.state]
level = "process"
needs = {needs}
"""
PLAIN = IMAGE.format(needs="{}")


def kill_store(me: Attached) -> None:
    os.kill(next(row.pid for row in me.kernel.ps.now() if row.server == "state"), signal.SIGKILL)


def test_a_watch_has_no_gap_over_ends_of_the_store_and_of_the_kernel(tmp_path: Path) -> None:
    seen: list[int] = []
    written: list[int] = []

    def write(state: State, other: State, count: int) -> None:
        for _ in range(count):
            written.append(state.commit.now([Write(b"k", b"v")]).revision)
            other.commit.now([Write(b"k", b"v")])

    with booted(tmp_path, text=PLAIN) as node:
        me = node.attach()
        state, other = me.keyspace("rows"), me.keyspace("others")
        write(state, other, 3)
        watch = state.watch.now(0)
        seen += [next(watch).revision for _ in range(3)]
        kill_store(me)
        write(state, other, 3)
        seen += [next(watch).revision for _ in range(2)]  # one is left for after the kernel's end
        node.kill()
        with pytest.raises(NodeDown):
            state.get.now(b"k")
        me.close()
        node.boot()
        with node.attach() as again:
            state, other = again.keyspace("rows"), again.keyspace("others")
            write(state, other, 2)
            resumed = state.watch.now(seen[-1])
            seen += [next(resumed).revision for _ in range(3)]
            resumed.cancel()
    assert seen == written


def test_a_watcher_that_takes_nothing_halts_no_writer_and_is_told_what_it_missed(tmp_path: Path) -> None:
    """More is written than its stream, and what the store keeps for it, hold."""
    with booted(tmp_path, text=PLAIN) as node, node.attach() as me, node.attach() as slow:
        state = me.keyspace("rows")
        watch = slow.keyspace("rows").watch.now(0)
        written = [state.commit.now([Write(b"k", b"v")]).revision]
        assert next(watch).revision == written[0]
        for _ in range(20):
            futures = [state.commit.start([Write(b"k", bytes(1000))]) for _ in range(250)]
            written += [future.result().revision for future in futures]
        seen, behind = written[:1], [0]
        while seen[-1] != written[-1]:
            change = next(watch)
            seen.append(change.revision)
            behind.append(change.behind)
        watch.cancel()
        assert seen == written
        assert max(behind) > 1024 and behind[-1] == 0
        resumed = slow.keyspace("rows").watch.now(written[100], b"", "deletes")
        state.commit.now([Write(b"k")])
        assert next(resumed).items[0].value is None
        resumed.cancel()


def test_every_revision_says_who_wrote_it_and_for_which_call(tmp_path: Path) -> None:
    with booted(tmp_path, text=PLAIN) as node:
        with node.attach() as me:
            me.keyspace("rows").commit.now([Write(b"k", b"v")], note="a note")
            kill_store(me)
            mine = me.keyspace("rows").commit.now([Write(b"k", b"w")]).revision
            who = me.keyspace("rows").who.now(mine)
            assert who is not None and who.keyspace == "rows"
            assert me.keyspace("others").who.now(mine) is None
        folder = node.folder / "data" / "state"
    engine = LmdbEngine(folder, read_only=True)
    with engine.snapshot() as snapshot:
        entries = [layout.entry_of(raw) for _, raw in snapshot.feed(0)]
    engine.close()
    assert len(entries) == check_folder(folder).revisions
    for entry in entries:
        channel, request = map(int, entry.call.split(":"))
        assert channel > 0 and request > 0
    # The kernel's own say what they are for; what others say of themselves is theirs.
    assert all(entry.note for entry in entries if entry.badge == 0)
    assert sum(entry.note == "a note" for entry in entries) == 1


def test_a_limit_that_was_raised_gives_room(tmp_path: Path) -> None:
    limited = IMAGE.format(needs="{ config = { config = { limit = 50_000_000 } } }")
    with booted(tmp_path, text=limited) as node, node.attach() as me:
        state = me.keyspace("rows")
        count, told = fill_store(state)
        assert "raise the store's limit in the image" in told
        assert state.get.now(b"%06d" % (count - 1)) is not None
        assert state.get.now(b"%06d" % count) is None
    with booted(tmp_path, text=PLAIN) as node, node.attach() as me:
        state = me.keyspace("rows")
        assert state.commit.now([Write(b"%06d" % count, bytes(100_000))]).revision
        assert not check_folder(node.folder / "data" / "state").breaches
