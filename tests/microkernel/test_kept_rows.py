"""What the kernel's rows say of one event is one commit; and they are kept for as long as the image says."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import NotAllowed
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.system import records
from atoll.ipc.system.kernel import StartFailed, Swap, Swapped
from atoll.ipc.system.records import (
    AttachmentRow,
    ChannelRow,
    CrashRow,
    EventRow,
    IntentRow,
    ProcessRow,
    RefusalRow,
    ServerRow,
    SessionRow,
    SwapRow,
    after,
    decode,
)
from atoll.ipc.system.state import Item, State, Write, absolute, relative
from atoll.microkernel.expiry import Expiry
from atoll.microkernel.image import Keep
from atoll.microkernel.versions import hash_of
from atoll.servers.shell.travel import version

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface
from .test_swap import version as edited

Counter = interface("counter", "Counter")
HAND_OVER = "    def hand_over(self) -> bytes:\n"

AT_ONCE = """
[keep]
events = 0
refusals = 0
crashes = 0
swaps = 0
processes = 0
channels = 0
attachments = 0
sessions = 0
history = 0
"""
TELL_OF_WHAT_WAS: dict[str, tuple[type[records.Row], ...]] = {
    "events": (EventRow,),
    "refusals": (RefusalRow,),
    "crashes": (CrashRow,),
    "swaps": (SwapRow,),
    "processes": (ProcessRow, IntentRow),
    "channels": (ChannelRow,),
    "attachments": (AttachmentRow,),
    "sessions": (SessionRow,),
}
"""By their keys in an image."""
TABLES = tuple(itertools.chain.from_iterable(TELL_OF_WHAT_WAS.values()))


def kernel(attached: Attached) -> State:
    return attached.keyspace(records.KEYSPACE, ["read", "history"])


def items(state: State, table: type[records.AnyRow]) -> list[tuple[Item, records.AnyRow]]:
    found = state.range.now(table.key_of(), after(table.key_of())).items
    return [(item, decode(table, item.value or b"")) for item in found]


def until(state: State, done: Callable[[], bool]) -> None:
    head = state.head.now()
    if not done():
        next(change for change in state.watch.now(head) if done())


def kill(attached: Attached, server: str) -> int:
    pid = next(row.pid for row in attached.kernel.ps.now() if row.server == server)
    os.kill(pid, signal.SIGKILL)
    return pid


def swapped(attached: Attached, folder: Path) -> tuple[Swapped, str]:
    """The counter gives way to a new version, which another one is not fit to follow; why that was refused."""
    done = attached.kernel.swap.now(
        Swap(server="counter", package=edited(folder, HAND_OVER, "    # another\n" + HAND_OVER))
    )
    fails = "    async def start(self) -> None:\n        raise ValueError('not today')\n\n"
    with pytest.raises(StartFailed) as refused:
        attached.kernel.swap.now(
            Swap(server="counter", level="seccomp", package=edited(folder, HAND_OVER, fails + HAND_OVER))
        )
    return done, str(refused.value)


def something_of_each(attached: Attached, folder: Path) -> State:
    """Has happen what each of these tables tells of; the kernel's rows, which do."""
    state = kernel(attached)
    swapped(attached, folder)
    with pytest.raises(NotAllowed):
        attached.open("counter", Counter, ["read"]).add.now("rain", 1)
    kill(attached, "counter")
    until(state, lambda: all(items(state, table) for table in TABLES))
    return state


def test_a_swap_is_told_of_done_or_refused(node: RealNode, tmp_path: Path) -> None:
    with node.attach() as attached:
        state = kernel(attached)
        done, why = swapped(attached, tmp_path)
        until(state, lambda: len(items(state, SwapRow)) == 2)
        (one, first), (_, second) = items(state, SwapRow)
        assert (first.boot, first.server, first.old, first.new) == (1, "counter", done.old, done.new)
        assert (first.old_level, first.new_level) == ("process", "process")
        assert (first.done, first.sentence) == (True, "")
        assert (second.boot, second.server, second.old) == (1, "counter", done.new)
        assert second.new not in {done.old, done.new}
        assert (second.old_level, second.new_level) == ("process", "seccomp")
        assert (second.done, second.sentence) == (False, why)
        assert "not today" in why
        assert first.began < first.ended < second.began < second.ended
        (run,) = (row for _, row in items(state, ServerRow) if row.server == "counter")
        assert (run.version, run.level) == (done.new, "process")
        then = state.get.now(ServerRow.key_of("counter"), one.revision)
        assert then is not None and then.revision == one.revision  # one commit


def test_a_swap_is_told_of_whose_version_cannot_be_imported(node: RealNode, tmp_path: Path) -> None:
    """Nothing of it is ever started. The event of the next swap is written behind what tells of this one."""
    package = edited(tmp_path, "import os\n", "import os\nimport no_such_module\n")
    with node.attach() as attached:
        state = kernel(attached)
        with pytest.raises(StartFailed) as refused:
            attached.kernel.swap.now(Swap(server="counter", package=package))
        attached.kernel.swap.now(Swap(server="counter"))
        until(state, lambda: any(event.kind == "swap" for _, event in items(state, EventRow)))
        first, second = (row for _, row in items(state, SwapRow))
        assert (first.done, first.sentence, first.new) == (False, str(refused.value), hash_of(Path(package)))
        assert "no_such_module" in first.sentence
        assert (second.done, second.new) == (True, first.old)
        assert "swap refused" in [event.kind for _, event in items(state, EventRow)]


async def test_of_each_table_goes_what_its_own_key_says(tmp_path: Path) -> None:
    """The rows of a real node, swept as at its next boot with one key at a time."""
    with booted(tmp_path) as node, node.attach() as attached:
        something_of_each(attached, tmp_path)
        found = list(attached.keyspace(records.KEYSPACE, ["read"]).range.now(b"").items)
    left = {key: await left_by_a_sweep(found, Keep(**{key: 0.0})) for key in TELL_OF_WHAT_WAS}  # type: ignore[arg-type]
    there = {item.key for item in found}
    for key, tables in TELL_OF_WHAT_WAS.items():
        prefixes = tuple(table.table for table in tables)
        assert there - left[key] == {item.key for item in found if item.key.startswith(prefixes)}, key


async def left_by_a_sweep(items: list[Item], keep: Keep) -> set[bytes]:
    store = MemoryStore()
    state = store.state()
    keyspace = await state.make_keyspace(records.KEYSPACE)
    await state.commit([Write(absolute(keyspace, item.key), item.value) for item in items])
    node: Any = SimpleNamespace(
        store=SimpleNamespace(state=state, keyspace=keyspace),
        image=SimpleNamespace(node=SimpleNamespace(keep_log=None, keep_calls=None), keep=keep),
        now=time.time_ns,
        boot=2,
    )
    await Expiry(node).sweep()
    return {relative(item.key)[1] for item in (await state.range(absolute(keyspace, b""), limit=1000)).items}


def test_a_crash_is_one_commit(tmp_path: Path) -> None:
    with booted(tmp_path) as node, node.attach() as attached:
        state = kernel(attached)
        pid = kill(attached, "counter")
        until(state, lambda: bool(items(state, CrashRow)))
        ((crash, _),) = items(state, CrashRow)
        (event,) = (item for item, row in items(state, EventRow) if row.kind == "crash")
        (ended,) = (item for item, row in items(state, ProcessRow) if row.pid == pid and row.ended)
        assert crash.revision == event.revision == ended.revision


def test_rows_of_what_is_over_go_and_others_stay(tmp_path: Path) -> None:
    with booted(tmp_path) as node:
        with node.attach() as attached:
            state = something_of_each(attached, tmp_path)
            named = [row.server for _, row in items(state, ServerRow)]
            held = sorted((row.holder, row.rights) for row in attached.kernel.caps.now() if row.lasting)
        assert node.stop() == 0
        node.image.write_text(node.image.read_text() + AT_ONCE)
        node.boot()
        with node.attach() as attached:
            state = kernel(attached)

            def of_the_first_boot() -> list[str]:
                return [
                    records.name_of(table)
                    for table in TABLES
                    for _, row in items(state, table)
                    if row.boot == 1
                ]

            until(state, lambda: not of_the_first_boot())
            running = {row.server for _, row in items(state, ProcessRow) if not row.ended}
            assert running == {row.server for row in attached.kernel.ps.now() if row.pid}
            assert [row.server for _, row in items(state, ServerRow)] == named
            assert (
                sorted((row.holder, row.rights) for row in attached.kernel.caps.now() if row.lasting) == held
            )


def test_who_wrote_a_version_is_told_after_the_kernels_own_past_was_given_up(tmp_path: Path) -> None:
    forgets = "needs = { config = { config = { grace = 0.0, compact_every = 0.02 } } }"
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="[keep]\nhistory = 0")
    with booted(tmp_path, text=text.replace("needs = {}", forgets, 1)) as node, node.attach() as attached:
        attached.open("counter", interface("counter", "Counter")).add.now("rain", 2)
        state, own = attached.keyspace("counter", ["read", "history"]), kernel(attached)
        (item,) = state.history.now(b"rain")
        while own.horizon.now().revision <= item.revision:
            with node.attach() as another:
                another.keyspace("counter").head.now()
        found = version(state, own, item)
        assert (found.by, found.note, found.asked[:1]) == ("counter", "Counter.add", "@")


def test_who_wrote_a_version_is_told_after_the_rows_of_channels_went(tmp_path: Path) -> None:
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="")
    with booted(tmp_path, text=text + AT_ONCE.replace("history = 0", "")) as node:
        with node.attach() as attached:
            attached.open("counter", interface("counter", "Counter")).add.now("rain", 2)
            (item,) = attached.keyspace("counter", ["read", "history"]).history.now(b"rain")
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            state, own = attached.keyspace("counter", ["read", "history"]), kernel(attached)
            until(own, lambda: all(row.boot > 1 for _, row in items(own, ChannelRow)))
            until(own, lambda: all(row.boot > 1 for _, row in items(own, AttachmentRow)))
            found = version(state, own, item)
            assert (found.by, found.note, found.asked[:1]) == ("counter", "Counter.add", "@")
