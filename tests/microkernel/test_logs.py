"""What servers say, under a flood of it."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from atoll.ipc.errors import PeerDied
from atoll.ipc.system.kernel import LogRow
from atoll.ipc.system.records import CrashRow, after, decode
from atoll.ipc.system.state import Write
from atoll.microkernel.journal import create
from atoll.microkernel.logs import LAST_KEPT, UNWRITTEN_MOST, Logs
from atoll.microkernel.store import Store

from .nodes import RealNode, interface

Counter = interface("counter", "Counter")


def test_a_server_that_floods_its_output_drowns_nobody(node: RealNode) -> None:
    """Lines beyond what may become rows are counted and dropped; what others said stays, and the kernel answers."""
    with node.attach() as attached:
        attached.kernel.freeze.now("teller", "to be remembered")
        attached.kernel.thaw.now("teller")
        done = attached.open("counter", Counter).flood.start(300_000)
        for _ in range(20):  # it answers meanwhile
            attached.kernel.ps.now()
        done.result()
        lines: list[LogRow] = []
        for line in attached.kernel.logs.now():
            lines.append(line)
            if "lines were dropped" in line.text:
                break
        assert any(line.server == "teller" and "to be remembered" in line.text for line in lines)
        assert sum(line.text == "x" for line in lines) < 20_000
        (wordy,) = [line for line in lines if line.text == "wordy"]
        assert sum(map(len, wordy.fields.values())) <= 8192 + 100


def test_a_crash_is_kept_with_the_last_things_that_were_said(node: RealNode) -> None:
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        counter.flood.now(7)
        with suppress(PeerDied):
            counter.die.now()
        assert counter.get.now("x") == 0, "it serves again"
        page = attached.keyspace("kernel").range.now(CrashRow.table, after(CrashRow.table))
        (crash,) = [decode(CrashRow, item.value or b"") for item in page.items]
        assert crash.lines.count("x") >= LAST_KEPT - 1  # its log line comes another way, and may come last


def test_a_crash_is_told_by_the_last_words_and_not_by_what_is_drawn_beside_them(node: RealNode) -> None:
    """The traceback of what ended in nurseries ends with a line of dashes."""
    with node.attach() as attached:
        counter = attached.open("counter", Counter)
        with suppress(PeerDied):
            counter.give_up.now("this cannot be")
        assert counter.get.now("x") == 0, "it serves again"
        page = attached.keyspace("kernel").range.now(CrashRow.table, after(CrashRow.table))
        (crash,) = [decode(CrashRow, item.value or b"") for item in page.items]
        # Its own log has a line of it, too, which comes another way: either may be the last.
        assert crash.how.startswith("exited with status 1; last words: ")
        assert crash.how.endswith("SystemExit: this cannot be")


async def test_output_that_was_said_to_be_there_and_is_not_is_waited_for_again(tmp_path: Path) -> None:
    """The word may be about what bore the number before: here another reader is told as well, and takes what there is."""
    node: Any = SimpleNamespace(
        place=SimpleNamespace(folder=tmp_path), now=lambda: 1, boot=1, store=SimpleNamespace(serves=False)
    )
    logs = Logs(node)
    output, write = os.pipe()
    other = os.dup(output)

    async def snatch() -> None:
        while True:
            await trio.lowlevel.wait_readable(other)
            with suppress(BlockingIOError):
                os.read(other, 100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(logs.read_output, "patient", 1, "info", output)
        async with trio.open_nursery() as snatching:
            snatching.start_soon(snatch)
            for _ in range(30):  # who is first is chance
                await trio.testing.wait_all_tasks_blocked()
                os.write(write, b"x\n")
            await trio.testing.wait_all_tasks_blocked()
            snatching.cancel_scope.cancel()
        os.close(other)
        os.write(write, b"the last\n")
        os.close(write)
    assert logs.last("patient")[-1] == "the last"
    logs.close()


class Slow:
    """A store that serves, and takes its time."""

    def __init__(self) -> None:
        self.answer = trio.Event()

    async def commit(self, writes: Sequence[Write], *, id: bytes, note: str) -> SimpleNamespace:
        await self.answer.wait()
        return SimpleNamespace(revision=1)


async def test_lines_that_come_faster_than_the_store_takes_them_are_counted_and_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """The kernel keeps so many of a server and no more, however long the store takes for those before."""
    journal = create(tmp_path / "journal", "node", 7)
    journal.boot(10)
    state: Any = Slow()
    store = Store(journal, 1)
    await store.opened(state, 0)
    node: Any = SimpleNamespace(place=SimpleNamespace(folder=tmp_path), now=lambda: 1, boot=1, store=store)
    logs = Logs(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write_later)
        nursery.start_soon(logs.keep)
        for _ in range(10):
            for _ in range(UNWRITTEN_MOST):
                logs.line("wordy", 1, "info", "x")
            await trio.sleep(1.0)
        assert len(store._taken) + len(store._later) + len(logs._pending) <= 2 * UNWRITTEN_MOST
        state.answer.set()
        await trio.sleep(1.0)
        (said,) = {line.text async for line in logs.follow(0, "wordy", False)} - {"x"}
        assert said.startswith(f"{8 * UNWRITTEN_MOST} lines were dropped")
        nursery.cancel_scope.cancel()
    logs.close()
    journal.close()
