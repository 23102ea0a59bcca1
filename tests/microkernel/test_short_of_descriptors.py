"""Where the kernel has no file descriptor left: what cannot be made leaves nothing open, and what cannot be seen is looked
at again."""

import errno
import fcntl
import gc
import os
import resource
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from atoll.ipc.errors import Overloaded
from atoll.ipc.system.control import Shape
from atoll.microkernel import launching, processes, tables
from atoll.microkernel.accounts import Ledger
from atoll.microkernel.buffers import Buffer
from atoll.microkernel.capabilities import Tree
from atoll.microkernel.changes import Batch
from atoll.microkernel.channels import Channels
from atoll.microkernel.descriptions import describe_all
from atoll.microkernel.events import Events
from atoll.microkernel.grants import Grants
from atoll.microkernel.mechanisms import HostChance
from atoll.microkernel.parties import Party, Serving
from atoll.microkernel.peers import Peer
from atoll.microkernel.processes import CannotConfine
from atoll.microkernel.readers import Readers
from atoll.microkernel.remains import survivors
from atoll.microkernel.slices.v1 import GroupV1
from atoll.microkernel.tables import Table
from atoll.microkernel.versions import Version
from atoll.microkernel.watching import Watching

from .children import OUT, VICTIMS, forge, planned, told
from .nodes import RealNode

STEPS = [
    (socket, "socketpair", 0),
    (os, "pidfd_open", 0),
    (fcntl, "fcntl", 0),
    (fcntl, "fcntl", 1),
    (os, "pidfd_open", 1),
]
"""Calls by which a fork server is started, and which of them fails."""


@pytest.fixture(autouse=True)
def nothing_left_to_collect() -> None:
    """What earlier tests left would be closed while descriptors are counted."""
    gc.collect()


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def failing_after(
    calls: int, action: Callable[..., Any], failed: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """The same, but for those after so many."""
    left = iter(range(calls))

    def act(*arguments: Any) -> Any:
        if next(left, None) is None:
            failed()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return action(*arguments)

    return act


def test_a_process_whose_status_cannot_be_made_leaves_nothing_open() -> None:
    before, (soft, hard) = opened(), resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0), os.dup(0)]  # a notice is a descriptor of the memory's and one of its mapping's
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            Serving(1, "server", "")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert opened() == before


def test_a_channel_without_a_doorbell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    channels, party = Channels(HostChance()), Party(1, "client", "")
    before, free = opened(), len(party.notice._free)
    monkeypatch.setattr(socket, "socketpair", failing_after(0, socket.socketpair))
    with pytest.raises(OSError, match="Too many open files"):
        channels.make(party, "server", Shape())
    assert (opened(), len(party.notice._free)) == (before, free)
    assert channels.check() == []
    party.close()


@pytest.mark.parametrize("calls", [0, 1])
def test_a_process_whose_output_cannot_be_read_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    before = opened()
    monkeypatch.setattr(os, "pipe2", failing_after(calls, os.pipe2))
    with pytest.raises(OSError, match="Too many open files"), ExitStack() as made:
        launching._ends(made)
    assert opened() == before


@pytest.mark.parametrize(("module", "name"), [(socket, "socketpair"), (os, "open")])
async def test_a_package_that_cannot_be_asked_says_why(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """It came as a group of errors, which nobody expects, and ended the load as a bug of the kernel."""
    nothing: Any = None
    before = opened()
    with monkeypatch.context() as short:
        short.setattr(module, name, failing_after(0, getattr(module, name)))
        found = await describe_all(nothing, nothing, {"odd": Path("/nowhere")}, {})
    assert "Too many open files" in str(found["odd"])
    assert opened() == before


def test_a_buffer_that_cannot_be_looked_at_counts_as_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(1, "@1", "all")
    buffer = Buffer(1, party, 4096, "writable")
    buffer.make()
    with monkeypatch.context() as short:
        short.setattr(os, "open", failing_after(0, os.open))
        assert buffer.mapped()
    assert not buffer.mapped()
    buffer.close()
    party.close()


def test_a_buffer_that_cannot_be_handed_over_is_for_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    party = Party(1, "@1", "all")
    buffer = Buffer(1, party, 4096, "writable")
    buffer.make()
    with monkeypatch.context() as short:
        short.setattr(os, "open", failing_after(0, os.open))
        with pytest.raises(Overloaded, match="file descriptors"):
            Grants.__new__(Grants)._send(buffer, party, 1, "writable")
    buffer.close()
    party.close()


async def test_a_child_whose_pidfd_cannot_be_taken_is_none() -> None:
    """The kernel would know no more of it than its number, and end over that."""
    confinement = planned("process").confinement
    assert confinement is not None
    async with forge() as made:
        assert (await told(made, confinement, "who"))[1].clean
        before, (soft, hard) = opened(), resource.getrlimit(resource.RLIMIT_NOFILE)
        held = os.open(os.devnull, os.O_WRONLY)
        free = [os.dup(0), os.dup(0)]  # both ends of the socket by which it says how it is confined
        for descriptor in free:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
        try:
            with pytest.raises(CannotConfine, match="Too many open files"):
                await made.spawn(
                    confinement,
                    descriptors={OUT: held},
                    arguments=(OUT,),
                    entry="victims:who",
                    path=(VICTIMS,),
                )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(held)
        assert opened() == before
        assert (await told(made, confinement, "who"))[1].clean


async def test_a_child_whose_listener_cannot_be_taken_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its filter refuses would fail unseen."""
    plan = planned("seccomp")
    if plan.confinement is None:
        pytest.skip(f"level seccomp is not possible here: {plan.missing}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    confined = processes._confined

    async def short(process: processes.Process, status: trio.socket.SocketType) -> int | None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OUT, hard))
        try:
            return await confined(process, status)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    async with forge() as made:
        assert (await told(made, plan.confinement, "who"))[1].clean
        before = opened()
        with monkeypatch.context() as patched:
            patched.setattr(processes, "_confined", short)
            with pytest.raises(CannotConfine, match="Too many open files"):
                await made.spawn(
                    plan.confinement, descriptors={}, arguments=(OUT,), entry="victims:who", path=(VICTIMS,)
                )
        assert opened() == before
        assert (await told(made, plan.confinement, "who"))[1].clean


@pytest.mark.parametrize(("module", "name", "calls"), STEPS)
async def test_a_fork_server_that_cannot_be_started_again_at_once_is_later(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int
) -> None:
    """The kernel goes on without one until then, and what was begun of it is no second one: that would take the kernel for
    dead, and end all that bears its marker."""
    confinement = planned("process").confinement
    assert confinement is not None
    marker = f"--test={secrets.token_hex(8)}"
    async with forge(marker) as made, trio.open_nursery() as nursery:
        assert (await told(made, confinement, "who"))[1].clean
        before, failed, renewed = opened(), trio.Event(), trio.Event()
        made.renewed = lambda how: renewed.set()
        nursery.start_soon(made.keep)
        assert made.process is not None
        with monkeypatch.context() as short:
            short.setattr(module, name, failing_after(calls, getattr(module, name), failed.set))
            made.process.kill()
            await failed.wait()
        await renewed.wait()
        assert opened() == before
        assert (await told(made, confinement, "who"))[1].clean
        assert [each.pid for each in survivors(marker)] == [made.process.pid]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("module", "name", "calls"), STEPS[:3])
async def test_a_watcher_that_cannot_be_started_again_at_once_is_later(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int
) -> None:
    watching, told, failed = Watching(f"--test={secrets.token_hex(8)}"), trio.Event(), trio.Event()
    node: Any = SimpleNamespace(watching=watching)
    nothing: Any = None
    events = Events(node, nothing)
    monkeypatch.setattr(events, "event", lambda *_: told.set())
    first = watching.start()
    before = opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(events.watch)
        with monkeypatch.context() as short:
            short.setattr(module, name, failing_after(calls, getattr(module, name), failed.set))
            first.kill()
            await failed.wait()
        await told.wait()
        assert watching.process is not first
        assert opened() == before
        nursery.cancel_scope.cancel()
    await watching.close()


def test_a_group_that_cannot_be_entered_everywhere_leaves_nothing_open(tmp_path: Path) -> None:
    group = GroupV1("group", {"cpu": tmp_path / "cpu", "pids": tmp_path / "pids"})
    (tmp_path / "cpu" / "tasks").touch()
    before = opened()
    with pytest.raises(FileNotFoundError):
        group.open()
    assert opened() == before


def test_a_reader_that_a_party_cannot_be_led_to_leaves_it_at_the_writer() -> None:
    """The table of capabilities cannot grow. Whoever spreads who reads is a task of the kernel's own."""
    tree, readers = Tree(1, Ledger()), Readers.__new__(Readers)
    root, _ = tree.offer("state", "State", ["read"])
    held = tree.mint(root.id, by="state", to="@1", badge=1, rights=["read"])
    channel: Any = SimpleNamespace(number=1)
    readers._node = SimpleNamespace(  # type: ignore[assignment]
        tree=tree,
        ledger=SimpleNamespace(has_room=lambda *_: True),
        channels=SimpleNamespace(between=lambda *_: channel),
    )
    readers._authority = SimpleNamespace(  # type: ignore[assignment]
        connect=lambda *_: channel, enter=failing_after(0, lambda *_: None), clear=lambda ended: set()
    )
    reader: Any = SimpleNamespace(name="state.reader-1", twins={})
    party: Any = SimpleNamespace(number=1, account="")
    port: Any = None
    readers._give(reader, party, held, port)
    assert not reader.twins
    assert [each.id for each in tree] == [root.id, held.id]
    assert tree.check() == []


def test_a_table_that_cannot_grow_as_far_as_it_should_tells_how_far_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever checks against it is told of each segment, once."""
    table, told = Table("server"), list[int]()
    monkeypatch.setattr(tables, "Memory", failing_after(1, tables.Memory))
    with pytest.raises(OSError, match="Too many open files"):
        told.extend(table.make_room(3 * tables.ENTRIES - 1))
    monkeypatch.undo()
    told.extend(table.make_room(3 * tables.ENTRIES - 1))
    assert told == [1, 2]
    table.close()


async def test_a_process_that_its_group_cannot_take_note_of_is_ended() -> None:
    """Where there are no control groups the kernel looks when it started. Nobody would attend to its end, nor credit what
    it cost."""
    nothing: Any = None
    ledger, ended = Ledger(), trio.Event()
    process: Any = SimpleNamespace(pid=os.getpid(), kill=ended.set, close=lambda: None)

    async def done(*_: object, **__: object) -> Any:
        return process

    group = SimpleNamespace(open=list, killed_for_memory=int, joined=failing_after(0, lambda pid: None))
    store = SimpleNamespace(
        batch=lambda note: Batch(b"1", note), commit_or_keep=done, later=lambda batch, keep=False: None
    )
    confinement: Any = SimpleNamespace(require=lambda: None, in_force=())

    async def attend(server: object, serving: Serving) -> None:
        await ended.wait()
        ledger.release_all(serving.account, serving.cost)
        serving.close()
        serving.ended.set()

    async with trio.open_nursery() as nursery:
        logs: Any = SimpleNamespace(read_output=lambda *arguments: read_output(arguments[-1]))

        async def read_output(output: int) -> None:
            os.close(output)

        node: Any = SimpleNamespace(
            now=lambda: 1, boot=1, number=lambda: 1, ledger=ledger, store=store, parties={}, soon=nursery.start_soon,
            group=lambda *_: group, uid=lambda _: 1, forge=SimpleNamespace(spawn=done), watching=SimpleNamespace(watch=done),
        )  # fmt: skip
        spec = SimpleNamespace(recording=None, account="")
        server: Any = SimpleNamespace(name="counter", spec=spec, keeps_secrets=False)
        version = Version("counter", "hash", Path())
        starts = launching.Launching(node, logs, *(nothing,) * 5)
        before = opened()
        with pytest.raises(OSError, match="Too many open files"):
            await starts.launch(server, version, confinement, attend)
        assert ended.is_set()
    assert opened() == before
    assert not ledger.usage()


@pytest.mark.parametrize("free", [0, 1])
def test_a_program_that_cannot_be_looked_at_is_not_said_to_have_ended(free: int) -> None:
    """It is not refused, and may come again: neither its pidfd nor what /proc says of it can be opened."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before, (soft, hard) = opened(), resource.getrlimit(resource.RLIMIT_NOFILE)
        held = [os.dup(0) for _ in range(free + 1)]
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + free, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                Peer(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert opened() == before


def test_who_asks_for_a_capability_is_told_so(node: RealNode) -> None:
    with node.attach() as attached:
        held = {row.number for row in attached.kernel.caps.now()}
        assert node.kernel is not None
        most = resource.prlimit(node.kernel.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.kernel.pid, resource.RLIMIT_NOFILE, (3, most[1]))
        try:
            with pytest.raises(Overloaded, match="file descriptors"):
                attached.kernel.open.now("counter")
        finally:
            resource.prlimit(node.kernel.pid, resource.RLIMIT_NOFILE, most)
        assert {row.number for row in attached.kernel.caps.now()} == held
        attached.kernel.open.now("counter")
