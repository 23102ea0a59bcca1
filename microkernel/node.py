"""A node as the kernel holds it: what there is, and the look-ups that its parts share.

Whoever changes something is another module: `authority` capabilities, `supervisor` servers' lives, `swap`, `gate`,
`grants`; `boot` brings it up and takes it down; `syscalls` is its face.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from msgspec import Struct

from atoll.ipc import context
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.errors import NotFound
from atoll.ipc.future import wait_for
from atoll.ipc.runtime.describe import Description
from atoll.ipc.runtime.loop import ServeLoop

from .accounts import Ledger
from .allotments import Allotments
from .authority import Authority
from .capabilities import Tree
from .channels import Channels
from .image_check import Checked
from .mechanisms import Chance, Clock, HostChance, HostClock, Slices, Spawner, Watch
from .parties import KERNEL, Party, Serving
from .protection import Host
from .store import Store
from .uids import Uids
from .versions import Versions

if TYPE_CHECKING:
    from .events import Events
    from .grants import Grants
    from .logs import Logs
    from .readers import Readers
    from .supervisor import Server, Supervisor
    from .syscalls import Syscalls


class Place(Struct, frozen=True, kw_only=True):
    """Where a node is and what it is called."""

    name: str
    folder: Path
    image_path: str
    degrade: bool

    @property
    def marker(self) -> str:
        """Stands on the command line of every process of the node."""
        return f"atoll-node={self.folder}"

    @property
    def group(self) -> str:
        """The node's name for control groups: nodes of one name in two folders must not share any."""
        return f"{self.name}-{hashlib.blake2b(str(self.folder).encode(), digest_size=4).hexdigest()}"

    @property
    def socket(self) -> Path:
        return self.folder / "attach.sock"


class LoopHost:
    """The kernel as the process its client channels live in: its receive loop drains them."""

    def __init__(self, misbehaved: Callable[[int, str], None]) -> None:
        self._misbehaved = misbehaved

    def may_block(self, method: str) -> None:
        context.forbid_blocking(method)

    async def wait(self, subscribe: Any) -> None:
        await wait_for(subscribe)

    def alive(self, wait: float = 0.0) -> bool:
        return True

    def looping(self) -> bool:
        return True

    def owing(self, pending: Any) -> None:
        """The loop looks for room, too."""

    def sent(self) -> None:
        """The loop looks at every channel."""

    def kick(self, channel: int) -> None:
        """The loop looks at every channel."""

    def misbehaved(self, channel: int, check: str) -> None:
        self._misbehaved(channel, check)


class Node:
    """Made by `boot`, which fills in what needs the event loop."""

    loop: ServeLoop
    nursery: trio.Nursery
    supervisor: Supervisor
    readers: Readers
    events: Events
    logs: Logs
    grants: Grants
    syscalls: Syscalls

    def __init__(
        self, place: Place, checked: Checked, store: Store, forge: Spawner, watching: Watch,
        slices: Slices, abilities: Host, lock: int,
    ) -> None:  # fmt: skip
        self.place = place
        self.checked = checked
        self.image = checked.image
        self.store = store
        self.boot = store.boot
        self.forge = forge
        self.watching = watching
        self.slices = slices
        self.abilities = abilities
        self.lock = lock
        self.clock: Clock = HostClock()
        self.chance: Chance = HostChance()
        self.ledger = self.new_ledger()
        self.tree = Tree(self.boot, self.ledger)
        self.channels = Channels(self.chance)
        self.authority = Authority(self)
        self.allotments = Allotments(self)
        self.versions = Versions(place.folder / "versions")
        self.uids = Uids(place.folder / "uids", checked.image.node.uids, abilities.root)
        self.kernel = Party(0, KERNEL, KERNEL)
        self.status = mmap.mmap(-1, mmap.PAGESIZE)
        self.host = LoopHost(self._misbehaved)
        self.clients: dict[str, ClientChannel] = {}
        """The kernel's own ends, by server."""
        self.servers: dict[str, Server] = {}
        self.parties: dict[int, Party] = {0: self.kernel}
        self.keyspaces: dict[str, int] = {}
        self.bound: dict[tuple[str, str], int] = {}
        """By server and need the capability that stands for it."""
        self.described: dict[str, Description] = {}
        """Of servers that the image does not name."""
        self.started = self.now()
        self.weakenings: list[tuple[str, str, str]] = []
        """(server, mechanism, reason)."""
        self.down = trio.Event()
        """Set when the node is to end."""
        self.down_deadline = 5.0
        self.failure = ""
        """Why it ends, if it was not asked to."""
        self._numbers = itertools.count(1)

    def new_ledger(self) -> Ledger:
        """The accounts of the image, of which nothing is used."""
        return Ledger(self.image.account, self._over_quota)

    def _over_quota(self, account: str, resource: str, limit: int) -> None:
        """Somebody asked for more than their account has: recorded under who made the system call, if one is in hand."""
        call = context.current_or_none()
        channel = None if call is None else self.channels.get(call.client)
        who = f"account {account}" if channel is None else channel.client.holder
        self.events.refuse(who, "quota", f"more {resource} than the {limit} of account {account!r}")

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return int(self.clock.now() * 1e9)

    def number(self) -> int:
        """For the next party."""
        return next(self._numbers)

    def _misbehaved(self, channel: int, check: str) -> None:
        found = self.channels.get(channel)
        if found is not None:
            self.events.misbehaved(found.server, channel, check)

    # who is who ---------------------------------------------------------------------------------------------

    def server(self, name: str) -> Server:
        """A server of the node. Raises `NotFound` with the nearest name."""
        found = self.servers.get(name)
        if found is None:
            raise NotFound.among("server", name, self.servers)
        return found

    def serving(self, server: str) -> Serving | None:
        """The process that the channels of a server, or of a reader, go to now: none while one hands over to the next."""
        found = self.servers.get(server)
        if found is None:
            return self.readers.serving(server)
        return None if found.state == "draining" else found.serving

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

    def soon(self, action: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run a task of the kernel's beside the others."""
        self.nursery.start_soon(action, *arguments)
