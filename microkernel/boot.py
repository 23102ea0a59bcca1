"""Bringing a node up, and taking it down.

The order: one owner, one epoch, nothing left of the last boot; then `state`, from the journal alone; then rows, and with
them everything else. Nothing is changed before the image is known to be good.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
from msgspec import structs

from atoll.ipc import clock
from atoll.ipc.errors import AtollError, PeerFault
from atoll.ipc.system.records import KEYSPACE, LOG
from atoll.ipc.system.state import Retention

from . import graph, journal, plan, weakenings
from .authority import RIGHTS
from .capability_rows import write_ended
from .descriptions import describe_copies
from .expiry import Expiry
from .image import About, ServerBinding
from .image_check import STORE, STORE_INTERFACE, Checked, check
from .image_read import Draft
from .journal import Journal
from .mechanisms import Mechanisms
from .node import Node
from .ownership import BootRefused, Owned, disown, room_to_boot
from .parties import KERNEL, Serving
from .place import Place
from .process_rows import process_row, protection_row
from .processes import Forge
from .protection import probe
from .protection.process import may_lock
from .remains import END_WITHIN
from .restore import Restore
from .server import Server
from .slices import choose
from .specs import from_image
from .store import Store
from .versions import Version, Versions
from .watching import Watching
from .wiring import Parts, wire

LAST_ROWS_WITHIN = 2.0
"""Seconds for the rows of a shutdown: without them the next boot takes it for a crash, and no more."""
ENDED_EARLY = "it was told to end before it served"
Say = Callable[[str], None]
Up = Callable[[Node], None]


class Before(NamedTuple):
    """What is done before the event loop runs."""

    journal: Journal
    lock: int
    epoch: int
    versions: dict[str, Version]


def prepare(place: Place, checked: Checked, lock: int) -> Before:
    """Open the journal, begin an epoch, copy packages."""
    path = place.folder / "journal"
    now = int(clock.wall() * 1e9)
    with room_to_boot(place.folder):
        book = journal.open_(path) if path.exists() else journal.create(path, place.name, now)
        versions = Versions(place.folder / "versions")
        versions.clean()
        copied = {name: versions.add(package) for name, package in checked.packages.items()}
        for name, version in copied.items():
            versions.keep(version, checked.descriptions[name])
        epoch = book.boot(now)
    return Before(book, lock, epoch, copied)


def host(place: Place) -> Mechanisms:
    """What this host has for a node to be made over."""
    slices = choose(place.group)
    return Mechanisms(Forge(place.marker, slices.folders), Watching(place.marker), slices, probe())


def may_open_all() -> None:
    """Have as many descriptors as this user may: the kernel keeps three a channel, and accounts bound them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def leave_no_core() -> None:
    """What passes through channels may be private, and the kernel maps them all. It stays one that can be looked into:
    whoever may do that, root or the user whose own the node is, has the node's files and processes as well."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Boot:
    """One boot of a node, whose folder is owned. `say` prints a line for whoever booted it."""

    def __init__(
        self, place: Place, draft: Draft, owned: Owned, say: Say, *, plan_only: bool = False,
        over: Callable[[Place], Mechanisms] = host,
    ) -> None:  # fmt: skip
        self.place = place
        self.draft = draft
        self.owned = owned
        self.say = say
        self.plan_only = plan_only
        self.over = over
        self.down = trio.Event()
        self.node: Node | None = None

    async def run(self, up: Up) -> str:
        """Check the image, bring the node up, call `up`, serve until it is to end, take it down. Returns why it ended;
        empty: it was asked to. Raises `ImageRefused`, `BootRefused`.

        Packages are described by children of the fork server that the node then lives on. If the node is not to be, its
        folder is as it was."""
        may_open_all()
        may_lock()
        leave_no_core()
        before = None
        over = self.over(self.place)
        over.spawner.start()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                checked = await self._checked(over)
                if checked is not None:
                    self.say(graph.text(graph.graph(checked)).rstrip())
                    self.say(meant_for(checked.image.image))
                    before = prepare(self.place, checked, self.owned.lock)
                    failure = await self._run(checked, before, over, up)
                nursery.cancel_scope.cancel()
            return ENDED_EARLY if checked is None else failure
        finally:
            with trio.CancelScope(shield=True):
                await over.spawner.close()
                with trio.move_on_after(END_WITHIN):  # what does not end is for the next boot to name
                    await over.slices.clean()
            if before is None:
                disown(self.place, self.owned)

    async def _checked(self, over: Mechanisms) -> Checked | None:
        """The image, checked; None: the node is to end."""
        found: list[Checked] = []

        async def look() -> None:
            folder = Path(self.place.image_path).parent
            found.append(
                await check(self.draft, folder, partial(describe_copies, over.spawner, over.abilities))
            )

        return found[0] if await unless(self.down, look) else None

    async def _run(self, checked: Checked, before: Before, over: Mechanisms, up: Up) -> str:
        over.watch.start()
        store = Store(before.journal, before.epoch)
        node = Node(self.place, checked, store, over, self.owned.lock, self.down)
        parts = wire(node)
        self.node = node
        try:
            async with trio.open_nursery() as nursery:
                node.nursery = nursery
                await nursery.start(node.loop.serve)
                nursery.start_soon(over.spawner.keep)
                try:
                    if await unless(self.down, partial(self._up_or_refuse, node, parts, before)):
                        up(node)
                    elif not self.plan_only:
                        node.failure = node.failure or ENDED_EARLY
                    await node.down.wait()
                finally:
                    with trio.CancelScope(shield=True):
                        await take_down(node, parts, record=not self.plan_only)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await over.watch.close()
            parts.logs.close()
            before.journal.close()
        return node.failure

    async def _watch_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM, SIGINT and SIGHUP end the node in order; a second one does so at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                if self.down.is_set() and self.node is not None:
                    self.node.down_deadline = 0.0
                    kill_all(self.node)
                self.down.set()

    # up -----------------------------------------------------------------------------------------------------

    async def _up_or_refuse(self, node: Node, parts: Parts, before: Before) -> None:
        try:
            await self._up(node, parts, before)
        except PeerFault as fault:
            raise BootRefused(node.failure or str(fault)) from fault

    async def _up(self, node: Node, parts: Parts, before: Before) -> None:
        nursery = node.nursery
        self._warn(node)
        restore = Restore(node, parts.allotments, parts.authority, parts.needs, before.versions, self.say)
        await self._state_up(node, parts, restore)
        if self.plan_only:
            _, made = await restore.planned()
            self.say(plan.text(made).rstrip())
            node.down.set()
            return
        batch = node.store.batch("boot")
        await restore.rows(batch)
        await node.store.commit(batch.changes())
        nursery.start_soon(node.store.write_later)
        nursery.start_soon(parts.logs.keep)
        nursery.start_soon(parts.events.watch)
        nursery.start_soon(parts.grants.watch)
        await self._servers_up(node, parts)
        self._tell(node)
        nursery.start_soon(parts.watchdog.watch)
        nursery.start_soon(parts.readers.keep)
        nursery.start_soon(self._expire, node, parts)
        nursery.start_soon(Expiry(node).keep)
        parts.gate.open()
        nursery.start_soon(parts.gate.serve)

    def _warn(self, node: Node) -> None:
        for weakness in graph.graph(node.checked).weaknesses:
            node.weakenings.append((weakness.server, weakness.what, weakness.reason))
        for sentence in node.slices.lacks:
            node.weakenings.append(("node", "slices", sentence))

    def _tell(self, node: Node) -> None:
        """What is weaker than the image wants, beside what the image itself drops."""
        levels = [server.plan.level for server in node.servers.values() if server.plan is not None]
        node.weakenings += weakenings.attaching(levels, node.slices.kind)
        for line in weakenings.lines(node.weakenings, graph.graph(node.checked).weaknesses):
            self.say(line)

    async def _state_up(self, node: Node, parts: Parts, restore: Restore) -> None:
        """`state` first, from the journal and the image alone."""
        row = restore.row(STORE)
        server = restore.server(from_image(node.image, row, self.place.degrade))
        restore.offer(server)
        node.tree.offer(KERNEL, "Kernel", RIGHTS)
        root = node.tree.root(STORE, STORE_INTERFACE)
        ours = node.tree.grant(root.id, by=STORE, to=KERNEL, rights=root.rights)
        proxy = parts.authority.state_proxy(ours)
        await parts.supervisor.start(server)
        there = await proxy.keyspaces() if self.plan_only else {}  # where they are, they stay as they are
        kept = {KEYSPACE: Retention(age=float(node.image.keep.history)), LOG: Retention(age=0.0)}
        for name, retention in kept.items():
            number = there.get(name)
            if number is None:
                number = await proxy.make_keyspace(name, retention, reserved=True)
            node.keyspaces[name] = number
        node.store.log = node.keyspaces[LOG]
        await node.store.opened(proxy, node.keyspaces[KEYSPACE])

    async def _servers_up(self, node: Node, parts: Parts) -> None:
        """All but `state`, which runs; a server's servers are started before it, and none waits for another."""
        failures: list[AtollError] = []

        async def bring(server: Server) -> None:
            try:
                async with server.changing:
                    await parts.supervisor.start(server)
            except AtollError as error:
                if server.spec.load:
                    # A person loaded it and the image does not name it: the node is whole without it.
                    parts.supervisor.give_up(server, str(error))
                    self.say(f"server {server.name} stays down: {error}")
                else:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for name in order(node):
                server = node.servers[name]
                if name == STORE:
                    continue
                if server.spec.stopped:
                    server.state, server.reason = "stopped", "stopped by a person"
                    parts.authority.closed(name)
                    continue
                nursery.start_soon(bring, server)
                await trio.lowlevel.checkpoint()
        if failures:
            raise BootRefused(str(failures[0]))
        batch = node.store.batch("servers started")
        for server in node.servers.values():
            if server.serving is not None:
                batch.put(
                    process_row(node, server, server.serving),
                    protection_row(server),
                )
                assert server.plan is not None
                for weak in server.plan.weakenings:
                    node.weakenings.append((server.name, weak.mechanism, weak.reason))
                node.weakenings += [(server.name, "swap", reason) for reason in server.swappable]
        await node.store.commit(batch.changes())

    async def _expire(self, node: Node, parts: Parts) -> None:
        """Ends what has expired."""
        while True:
            due = node.tree.next_expiry()
            wait = 1.0 if due is None else min(1.0, max(0.0, (due - node.lived()) / 1e9))
            await trio.sleep(wait + 0.001)
            ended = node.tree.expire(node.lived())
            if ended.gone:
                parts.authority.clear(ended)
                parts.events.capabilities((), ended)
                node.store.later(write_ended(node.store.batch("expiry"), ended))


def meant_for(about: About) -> str:
    """What the image says of itself to whoever boots it."""
    machine = f"for {'an' if about.profile == 'edge' else 'a'} {about.profile} machine"
    return f"{machine}: {about.about}" if about.about else machine


def order(node: Node) -> list[str]:
    """Servers in the order to start them: those that another one needs before it; circles in the image's order."""
    found: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in visiting or name not in node.servers:
            return
        visiting.add(name)
        for bound in node.servers[name].needs.values():
            if isinstance(bound, ServerBinding):
                visit(bound.server)
        found.append(name)

    visit(STORE)
    for name in node.servers:
        visit(name)
    return found


async def unless(down: trio.Event, action: Callable[[], Awaitable[None]]) -> bool:
    """Act; False: it was given up, or is in vain, since `down` was set meanwhile."""
    async with trio.open_nursery() as nursery:

        async def give_up() -> None:
            await down.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(give_up)
        await action()
        nursery.cancel_scope.cancel()
    return not down.is_set()


async def take_down(node: Node, parts: Parts, *, record: bool = True) -> None:
    """End every server, callers before those they call, `state` last; whoever is being started or swapped meanwhile, too.
    Without `record` nothing of that becomes a row."""
    parts.gate.close()
    node.down.set()
    if not node.nursery.cancel_scope.cancel_called:
        await parts.readers.close()
        for name in reversed(order(node) if node.servers else []):
            if (server := node.servers.get(name)) is not None:  # a load may have come to nothing meanwhile
                await end_in_order(node, parts, server, record)
    node.store.end()
    parts.authority.closed(STORE)
    kill_all(node)


async def end_in_order(node: Node, parts: Parts, server: Server, record: bool) -> None:
    """End one server. A change of its life that is under way is waited for no longer than the server itself is."""
    with trio.move_on_after(node.down_deadline):
        async with server.changing:
            pass
    if server.name == STORE and record:
        parts.logs.write_rows()
        if not node.failure and node.row is not None:
            ended = structs.replace(node.row, ended=node.now())
            node.store.later(node.store.batch("shutdown").put(ended))
        with trio.move_on_after(LAST_ROWS_WITHIN):
            await node.store.flush()
    await parts.supervisor.end(server, node.down_deadline, "the node was shut down")


def kill_all(node: Node) -> None:
    """Kill every process of a server: each is attended to its end."""
    for party in node.parties.values():
        if isinstance(party, Serving) and party.process is not None:
            party.expected_end = party.expected_end or "the node was shut down"
            party.process.kill()
