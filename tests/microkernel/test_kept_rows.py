"""What the kernel's rows say of one event is one commit; and they are kept for as long as the image says."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from atoll.ipc.attach import Node as Attached
from atoll.ipc.system import records
from atoll.ipc.system.records import (
    AttachmentRow,
    ChannelRow,
    CrashRow,
    EventRow,
    ProcessRow,
    RefusalRow,
    ServerRow,
    SessionRow,
    after,
    decode,
)
from atoll.ipc.system.state import Item, State
from atoll.servers.shell.travel import version

from .nodes import IMAGE, PACKAGES, booted, interface

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
TELL_OF_WHAT_WAS = (EventRow, RefusalRow, CrashRow, ProcessRow, ChannelRow, AttachmentRow, SessionRow)


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
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="") + AT_ONCE
    with booted(tmp_path, text=text) as node:
        with node.attach() as attached:
            state = kernel(attached)
            kill(attached, "counter")
            until(state, lambda: bool(items(state, CrashRow)))
            named = [row.server for _, row in items(state, ServerRow)]
            held = sorted((row.holder, row.rights) for row in attached.kernel.caps.now() if row.lasting)
        assert node.stop() == 0
        node.boot()
        with node.attach() as attached:
            state = kernel(attached)

            def of_the_first_boot() -> list[str]:
                return [
                    records.name_of(table)
                    for table in TELL_OF_WHAT_WAS
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
