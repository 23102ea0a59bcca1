"""Bringing a node up, and taking it down.

The order: one owner, one epoch, nothing left of the last boot; then `state`, from the journal alone; then rows, and with
them everything else. Nothing is changed before the image is known to be good.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import trio

from atoll.ipc.errors import AtollError, PeerFault
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Endpoint

from . import graph, journal, needs, plan, weakenings
from .capability_rows import write_ended
from .events import Events
from .gate import Gate
from .grants import Grants
from .image_check import STORE, Checked
from .journal import Journal, StateServer
from .logs import Logs
from .node import Node, Place
from .parties import KERNEL, Serving
from .processes import Forge, end_survivors
from .protection import probe
from .readers import Readers
from .records import (
    KEYSPACE,
    BootRow,
)
from .restore import RIGHTS, Restore
from .slices import choose
from .specs import from_image
from .store import Store
from .supervisor import Server, Supervisor
from .syscalls import Syscalls
from .versions import Version, Versions
from .watchdog import Watchdog
from .watching import Watching

Say = Callable[[str], None]
Up = Callable[[Node], None]


class BootRefused(Exception):
    """The node cannot be booted; the message is one sentence with the remedy."""


class Before(NamedTuple):
    """What is done before the event loop runs."""

    journal: Journal
    lock: int
    epoch: int
    versions: dict[str, Version]


def own(folder: Path) -> int:
    """The lock on a node's folder: its open description. Raises `BootRefused` where another node holds it, or where no
    folder can be."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootRefused(
            f"this user cannot have a node in {folder} ({error.strerror}): boot with another --folder"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise BootRefused(
            f"a node runs in {folder} already (its kernel is process {pid or 'unknown'}): "
            "stop it with `atoll shutdown`, or boot with another --folder"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def prepare(place: Place, checked: Checked, lock: int) -> Before:
    """Open the journal, begin an epoch, copy packages."""
    path = place.folder / "journal"
    now = time.time_ns()
    book = journal.open_(path) if path.exists() else journal.create(path, place.name, now)
    versions = Versions(place.folder / "versions")
    versions.clean()
    copied = {name: versions.add(package) for name, package in checked.packages.items()}
    epoch = book.boot(now)
    return Before(book, lock, epoch, copied)


class Boot:
    """One boot of a node. `say` prints a line for whoever booted it."""

    def __init__(
        self, place: Place, checked: Checked, before: Before, say: Say, *, plan_only: bool = False
    ) -> None:
        self.place = place
        self.checked = checked
        self.before = before
        self.say = say
        self.plan_only = plan_only

    async def run(self, up: Callable[[Node], None]) -> str:
        """Bring the node up, call `up`, serve until it is to end, take it down. Returns why it ended; empty: it was
        asked to. Raises `BootRefused`."""
        ended = await end_survivors(self.place.marker)
        slices = choose(self.place.group)
        lefts = await slices.clean()
        for sentence in lefts:
            self.say(f"left over: {sentence}")
        if ended:
            self.say(f"ended {len(ended)} processes that the last boot left")
        forge, watching = Forge(self.place.marker), Watching(self.place.marker)
        forge.start()
        watching.start()
        store = Store(self.before.journal, self.before.epoch)
        node = Node(self.place, self.checked, store, forge, watching, slices, probe(), self.before.lock)
        node.events, node.logs, node.grants = Events(node), Logs(node), Grants(node)
        node.supervisor, node.readers = Supervisor(node), Readers(node)
        node.authority.interfaces[KERNEL] = ["Kernel"]
        gate = Gate(node)
        node.syscalls = Syscalls(node)
        endpoint = Endpoint(node.syscalls, None)
        node.loop = ServeLoop(
            endpoint,
            node.kernel.notice.memory.map,
            node.status,
            {"Kernel": RIGHTS},
            KernelObserver(node),
        )
        try:
            async with trio.open_nursery() as nursery:
                node.nursery = nursery
                await nursery.start(node.loop.serve)
                nursery.start_soon(watch_signals, node)
                try:
                    if await self._up_unless_ended(node, gate):
                        up(node)
                    await node.down.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await take_down(node, gate)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await forge.close()
                await watching.close()
                await slices.clean()
            node.logs.close()
            self.before.journal.close()
        return node.failure

    # up -----------------------------------------------------------------------------------------------------

    async def _up_unless_ended(self, node: Node, gate: Gate) -> bool:
        """Bring the node up; False if it is to end before it serves: a signal came, or the store cannot run."""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await node.down.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            try:
                await self._up(node, gate)
            except PeerFault as fault:
                raise BootRefused(node.failure or str(fault)) from fault
            nursery.cancel_scope.cancel()
        return not node.down.is_set()

    async def _up(self, node: Node, gate: Gate) -> None:
        nursery = node.nursery
        self._warn(node)
        restore = Restore(node, self.before.versions, self.say)
        await self._state_up(node, restore)
        if self.plan_only:
            _, made = await restore.planned()
            self.say(plan.text(made).rstrip())
            node.down.set()
            return
        batch = node.store.batch("boot")
        await restore.rows(batch)
        await node.store.commit(batch.changes())
        nursery.start_soon(node.store.write_later)
        nursery.start_soon(node.logs.keep)
        nursery.start_soon(node.events.watch)
        nursery.start_soon(node.grants.watch)
        await self._servers_up(node)
        self._tell(node)
        nursery.start_soon(Watchdog(node).watch)
        nursery.start_soon(node.readers.keep)
        nursery.start_soon(self._expire, node)
        gate.open()
        nursery.start_soon(gate.serve)

    def _warn(self, node: Node) -> None:
        for weakness in graph.graph(self.checked).weaknesses:
            node.weakenings.append((weakness.server, weakness.what, weakness.reason))
        for sentence in node.slices.lacks:
            node.weakenings.append(("node", "slices", sentence))

    def _tell(self, node: Node) -> None:
        """What is weaker than the image wants, beside what the image itself drops."""
        levels = [server.plan.level for server in node.servers.values() if server.plan is not None]
        node.weakenings += weakenings.attaching(levels, node.slices.kind)
        for line in weakenings.lines(node.weakenings, graph.graph(self.checked).weaknesses):
            self.say(line)

    async def _state_up(self, node: Node, restore: Restore) -> None:
        """`state` first, from the journal and the image alone."""
        row = restore.row(STORE)
        record = StateServer(
            package=row.package, version=row.version, level=row.level, start=row.start, image=row.image,
            add=row.add, drop=row.drop,
        )  # fmt: skip
        if node.store.journal.state != record:
            node.store.journal.set_state(record)
        server = restore.server(from_image(self.checked.image, row, self.place.degrade))
        restore.offer(server)
        node.tree.offer(KERNEL, "Kernel", RIGHTS)
        root = node.tree.root(STORE, needs.STORE_INTERFACE)
        ours = node.tree.grant(root.id, by=STORE, to=KERNEL, rights=root.rights)
        proxy = node.authority.state_proxy(ours)
        await node.supervisor.start(server)
        number = await proxy.make_keyspace(KEYSPACE, reserved=True)
        node.keyspaces[KEYSPACE] = number
        await node.store.opened(proxy, number)

    async def _servers_up(self, node: Node) -> None:
        """All but `state`, which runs; a server's servers are started before it, and none waits for another."""
        failures: list[AtollError] = []

        async def bring(server: Server) -> None:
            try:
                async with server.changing:
                    await node.supervisor.start(server)
            except AtollError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for name in order(node):
                server = node.servers[name]
                if name == STORE:
                    continue
                if server.spec.stopped:
                    server.state, server.reason = "stopped", "stopped by a person"
                    continue
                nursery.start_soon(bring, server)
                await trio.lowlevel.checkpoint()
        if failures:
            raise BootRefused(str(failures[0]))
        batch = node.store.batch("servers started")
        for server in node.servers.values():
            if server.serving is not None:
                batch.put(
                    node.supervisor.process_row(server, server.serving),
                    node.supervisor.protection_row(server),
                )
                assert server.plan is not None
                for weak in server.plan.weakenings:
                    node.weakenings.append((server.name, weak.mechanism, weak.reason))
        await node.store.commit(batch.changes())

    async def _expire(self, node: Node) -> None:
        """Ends what has expired."""
        while True:
            due = node.tree.next_expiry()
            wait = 1.0 if due is None else min(1.0, max(0.0, (due - node.now()) / 1e9))
            await trio.sleep(wait + 0.001)
            ended = node.tree.expire(node.now())
            if ended.gone:
                node.authority.clear(ended)
                node.events.capabilities((), ended)
                node.store.later(write_ended(node.store.batch("expiry"), ended))


class KernelObserver:
    """Hears what the kernel's own loop turned away."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def refused(self, channel: int, slot: int, method: int, why: str) -> None:
        self._node.events.refused(KERNEL, channel, method, why, 1)

    def misbehaved(self, channel: int, check: str) -> None:
        self._node.events.misbehaved(KERNEL, channel, check)


def order(node: Node) -> list[str]:
    """Servers in the order to start them: those that another one needs before it; circles in the image's order."""
    found: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in visiting or name not in node.servers:
            return
        visiting.add(name)
        for need in node.servers[name].spec.needs:
            wanted = needs.wanted(node, node.servers[name], need)
            if wanted is not None:
                visit(wanted.server)
        found.append(name)

    visit(STORE)
    for name in node.servers:
        visit(name)
    return found


async def watch_signals(node: Node) -> None:
    """SIGTERM and SIGINT end the node in order; a second one does so at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if node.down.is_set():
                node.down_deadline = 0.0
            node.down.set()


async def take_down(node: Node, gate: Gate) -> None:
    """End every server, callers before those they call, `state` last."""
    gate.close()
    node.down.set()
    if node.nursery.cancel_scope.cancel_called:
        await end_at_once(node)
        return
    await node.readers.close()
    for name in reversed(order(node) if node.servers else []):
        server = node.servers[name]
        if name == STORE:
            node.logs.write_rows()
            with trio.move_on_after(2.0):
                await node.store.flush()
                if node.store.serves and not node.failure:
                    await node.store.commit(node.store.batch("shutdown").put(ended_boot(node)).changes())
        await node.supervisor.end(server, node.down_deadline, "the node was shut down")


async def end_at_once(node: Node) -> None:
    """A task of the kernel's has failed, and with it all that would tidy up: end every process and no more."""
    for party in node.parties.values():
        if isinstance(party, Serving) and party.process is not None:
            party.process.kill()
            await party.process.wait()


def ended_boot(node: Node) -> BootRow:
    return BootRow(
        epoch=node.boot,
        node=node.place.name,
        started=node.started,
        image="",
        kernel=os.uname().release,
        ended=node.now(),
    )
