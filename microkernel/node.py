"""A node as the kernel holds it: what there is, and the look-ups that the kernel's parts share. Data, below all of them.

Whoever changes something is another module, and gets this beside the parts that it uses (`wiring`): `authority`
capabilities, `supervisor` servers' lives, `swap`, `gate`, `grants`. `boot` brings it up and takes it down.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any

import trio

from atoll.ipc.errors import NotFound
from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.system.records import BootRow

from .accounts import Ledger
from .capabilities import Tree
from .channels import Channels
from .image_check import Checked
from .mechanisms import Group, Mechanisms
from .parties import KERNEL, Party, Serving
from .place import Place
from .protection.process import SHARED_UID
from .server import Server
from .store import Store
from .uids import Uids
from .versions import Versions

IN_NO_SLICE = "_servers"
"""The control group of servers that are in no slice: no slice can be called so, and bound them."""


class Node:
    """Made by `boot`, which fills in what needs the event loop."""

    loop: ServeLoop
    nursery: trio.Nursery

    def __init__(
        self, place: Place, checked: Checked, store: Store, over: Mechanisms, lock: int, down: trio.Event
    ) -> None:
        self.place = place
        self.checked = checked
        self.image = checked.image
        self.store = store
        self.boot = store.boot
        self.forge = over.spawner
        self.watching = over.watch
        self.slices = over.slices
        self.abilities = over.abilities
        self.clock = over.clock
        self.chance = over.chance
        self.doors = over.doors
        self.threads = over.threads
        self.lock = lock
        self.ledger = Ledger(self.image.account)
        self.tree = Tree(self.boot, self.ledger)
        self.channels = Channels(self.chance)
        self.versions = Versions(place.folder / "versions")
        self.uids = Uids(place.folder / "uids", checked.image.node.uids, over.abilities.root)
        self.kernel = Party(0, KERNEL, KERNEL)
        self.servers: dict[str, Server] = {}
        self.reading: dict[str, Serving] = {}
        """Reader processes of the store, by the name that their channels go by."""
        self.parties: dict[int, Party] = {0: self.kernel}
        self.keyspaces: dict[str, int] = {}
        self.bound: dict[tuple[str, str], int] = {}
        """By server and need the capability that stands for it."""
        self.started = self.now()
        self.row: BootRow | None = None
        """Of this boot, once it has one."""
        self._lived, self._asked = self.started, self.clock.monotonic()
        self.weakenings: list[tuple[str, str, str]] = []
        """(server, mechanism, reason)."""
        self.down = down
        """Set when the node is to end."""
        self.down_deadline = 5.0
        self.failure = ""
        """Why it ends, if it was not asked to."""
        self._numbers = itertools.count(1)

    def now(self) -> int:
        """Nanoseconds since the epoch: for rows."""
        return int(self.clock.now() * 1e9)

    def lived(self) -> int:
        """Nanoseconds since the epoch by a clock that goes on where the host's is set back: what has a term ends by it, for
        a term must not grow."""
        asked = self.clock.monotonic()
        self._lived = max(self.now(), self._lived + asked - self._asked)
        self._asked = asked
        return self._lived

    def number(self) -> int:
        """For the next party."""
        return next(self._numbers)

    # who is who ---------------------------------------------------------------------------------------------

    def server(self, name: str) -> Server:
        """A server of the node. Raises `NotFound` with the nearest name."""
        found = self.servers.get(name)
        if found is None:
            raise NotFound.among("server", name, self.servers)
        return found

    @asynccontextmanager
    async def changing(self, server: Server) -> AsyncIterator[None]:
        """One change of a server's life at a time. Raises `NotFound` for one whose load came to nothing meanwhile."""
        async with server.changing:
            if self.server(server.name) is not server:
                raise NotFound.among("server", server.name, self.servers)
            yield

    def serving(self, server: str) -> Serving | None:
        """The process that the channels of a server, or of a reader, go to now: none while one hands over to the next."""
        found = self.servers.get(server)
        if found is not None:
            return None if found.state == "draining" else found.serving
        reader = self.reading.get(server)
        return None if reader is None or reader.gone else reader

    def processes_of(self, server: str) -> Iterator[Serving]:
        """Every live process of a server: in a swap there are two, and the store has readers."""
        for party in self.parties.values():
            if isinstance(party, Serving) and party.holder == server and not party.gone:
                yield party

    def party_of(self, channel: int) -> Party:
        """Who is the client of a channel. Raises `NotFound` for one that closed meanwhile."""
        found = self.channels.get(channel)
        if found is None:
            raise NotFound(what="channel", name=str(channel))
        return found.client

    def group(self, server: Server, reader: str = "") -> Group:
        """A server's control group, or that of the store's readers whose name is given."""
        if reader and server.spec.readers.slice:
            return self.slices.group(server.spec.readers.slice, reader)
        return self.slices.group(server.spec.slice or IN_NO_SLICE, server.name)

    def uid(self, server: Server) -> int | None:
        """The user id of a server's processes; None without root: the kernel's own."""
        own = self.uids.of(server.name)
        return SHARED_UID if own is not None and "own-uid" in server.spec.drop else own

    # tasks, and the end -------------------------------------------------------------------------------------

    def soon(self, action: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a task of the kernel's beside the others. It outlives the call that it was begun for, and has neither its
        deadline nor anything else of it."""
        Context().run(self.nursery.start_soon, action, *arguments)

    def fail(self, sentence: str) -> None:
        """The node cannot go on: end it, and say why."""
        self.failure = self.failure or sentence
        self.down.set()

    def end_soon(self, deadline: float) -> None:
        """End the node in order, after the reply to whoever asked has left."""
        self.down_deadline = deadline
        self.soon(self._end_soon)

    async def _end_soon(self) -> None:
        await trio.sleep(0.02)
        self.down.set()
