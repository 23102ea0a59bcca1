"""Who watches at a reader process of the store, in real nodes: no gap, and in order, whatever becomes of the reader."""

import os
import signal
from pathlib import Path

import trio

from atoll.ipc.system.state import State, Write

from .nodes import interface
from .test_readers import node_with_readers, with_reader


def test_watches_go_on_without_a_gap_when_their_reader_dies(tmp_path: Path) -> None:
    with node_with_readers(tmp_path) as node, node.attach() as me:
        state, other = me.keyspace("ledger"), me.keyspace("ledger")
        ledger = me.open("ledger", interface("ledger", "Ledger"))
        row = with_reader(me, state)
        start = state.head.now()
        watch, entries = state.watch.now(start), ledger.entries.now(start)
        written = []
        for number in range(20):
            if number == 10:
                os.kill(row.pid, signal.SIGKILL)
            written.append(ledger.put.now("k", number % 100))
            assert [next(watch).revision, next(entries).revision] == [written[-1]] * 2
        assert other.head.now() >= written[-1]
        watch.cancel()
        entries.cancel()


def test_each_of_many_watchers_hears_its_own_in_order_whatever_becomes_of_their_reader(
    tmp_path: Path,
) -> None:
    written: dict[bytes, list[int]] = {b"%02d" % number: [] for number in range(50)}
    heard: dict[bytes, list[int]] = {key: [] for key in written}
    rounds = 6

    async def listen(state: State, key: bytes, since: int) -> None:
        async for change in state.watch(since, key):
            heard[key].append(change.revision)
            if len(heard[key]) == rounds:
                return

    async def main(state: State, pid: int) -> None:
        since = await state.head()
        async with trio.open_nursery() as nursery:
            for key in written:
                nursery.start_soon(listen, state, key, since)
            for number in range(rounds):
                if number == rounds // 2:
                    os.kill(pid, signal.SIGKILL)
                for key, revisions in written.items():
                    revisions.append((await state.commit([Write(key, b"")])).revision)

    with node_with_readers(tmp_path) as node, node.attach() as me:
        state = me.keyspace("ledger")
        trio.run(main, state, with_reader(me, state).pid)
    assert heard == written
