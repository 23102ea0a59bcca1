"""System calls on capabilities: open, derive, mint, grant, transfer, revoke.

Giving: tree, row, effect, reply; what cannot be recorded, or put into its holder's hands, is taken back. Taking: tree and
tables, then wait until no loop can still serve what was taken, then the row.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from atoll.ipc.errors import AtollError, BadRequest, NotAllowed, NotFound, Overloaded
from atoll.ipc.system.control import CancelCalls
from atoll.ipc.system.kernel import Granted, Opened, WrongState, written
from atoll.ipc.system.records import KEYSPACE, written_by_the_node

from .authority import Authority
from .buffers import short_of_descriptors
from .capabilities import NEVER, Capability, Ended
from .capability_rows import write_ended, write_made
from .events import Events
from .failpoints import reach
from .image import DELEGATE, KEYSPACE_RIGHTS
from .image_check import STORE, STORE_INTERFACE
from .node import Node
from .parties import KERNEL, Party
from .windows import Windows

LONGEST = 100 * 365.25 * 86400
"""Seconds that a capability may be asked to last, or a server be given: 64 bits hold the nanoseconds of a time in them."""


class _Taken(NamedTuple):
    """A revocation that has begun."""

    by: str
    ended: Ended
    servers: set[str]
    """Whose tables say it."""


class Powers:
    def __init__(self, node: Node, events: Events, authority: Authority, windows: Windows) -> None:
        self._node = node
        self._events = events
        self._authority = authority
        self._windows = windows
        self._unwritten: dict[int, _Taken] = {}
        """By capability the revocations whose rows are not there yet: whoever tries again finds and writes them."""
        self._owed = set[int]()
        """Capabilities of those of them that wait in the journal."""

    # for people ---------------------------------------------------------------------------------------------

    async def open(self, party: Party, server: str, interface: str, rights: list[str] | None) -> Opened:
        node = self._node
        found = node.server(server)
        offers = [offer.name for offer in found.description.interfaces]
        if not interface and len(offers) != 1:
            raise BadRequest(where="open: interface", expected=f"one of {', '.join(offers)}", got="none")
        interface = interface or offers[0]
        if interface not in offers:
            raise NotFound.among(f"interface of {server} called", interface, offers)
        if found.state in ("stopped", "failed"):
            raise WrongState(server=server, state=found.state, wanted="running")
        described = next((each for each in found.offered if each.name == interface), None)
        if described is None:
            raise WrongState(server=server, state=found.state, wanted="started once")
        root = node.tree.root(server, interface)
        granted = self._give(
            party,
            node.tree.grant(
                root.id, by=root.holder, to=party.holder, rights=root.rights if rights is None else rights,
                account=party.account,
            ),
        )  # fmt: skip
        return Opened(number=granted.number, token=granted.token, described=described)

    async def keyspace(self, party: Party, name: str, rights: list[str] | None) -> Granted:
        node = self._node
        badge = node.keyspaces.get(name)
        if badge is None:
            raise NotFound.among("keyspace", name, node.keyspaces)
        allowed = ("read", "history") if written_by_the_node(name) else (*KEYSPACE_RIGHTS, DELEGATE)
        wanted = allowed if rights is None else tuple(rights)
        if not set(wanted) <= set(allowed):
            raise NotAllowed(
                method=f"keyspace {name}", needed=", ".join(sorted(set(wanted) - set(allowed))), held=allowed
            )
        root = node.tree.root(STORE, STORE_INTERFACE)
        return self._give(
            party,
            node.tree.mint(
                root.id, by=STORE, to=party.holder, badge=badge, rights=wanted, account=party.account
            ),
        )

    def keyspaces(self, party: Party, operator: bool) -> list[str]:
        badges = {each.badge for each in self._node.tree.held_by(party.holder) if each.server == STORE}
        names = [name for name, badge in self._node.keyspaces.items() if operator or badge in badges]
        return sorted(names, key=lambda name: (name != KEYSPACE, name))

    def _give(self, party: Party, made: Capability) -> Granted:
        """Hand a new session capability to a party that asked for it."""
        party.session.add(made.id)
        with self._or_none(made):
            self._authority.deliver(made, party)
        self._events.capabilities((made,), None)
        return Granted(number=made.id, token=made.id)

    # for holders --------------------------------------------------------------------------------------------

    def number(self, party: Party, channel: int, slot: int, generation: int) -> int:
        held = self._authority.held(channel, slot, generation)
        if held.holder != party.holder:
            raise NotFound(what="capability", name=f"slot {slot} of channel {channel}")
        return held.id

    def own(self, party: Party, interface: str) -> int:
        return self._node.tree.root(party.holder, interface).id

    def derive(self, party: Party, id: int, rights: list[str] | None, expires: float) -> int:
        held = self._mine(party, id)
        made = self._node.tree.derive(
            id, by=party.holder, rights=held.rights if rights is None else rights,
            expiry=self._expiry(held, expires), account=party.account,
        )  # fmt: skip
        return self._give(party, made).number

    def mint(
        self, party: Party, operator: bool, id: int, badge: int, rights: list[str] | None, expires: float
    ) -> int:
        held = self._node.tree.get(id) if operator else self._mine(party, id)
        self._offered(held)
        made = self._node.tree.mint(
            id, by=held.holder, to=party.holder, badge=badge, rights=held.rights if rights is None else rights,
            expiry=self._expiry(held, expires), account=party.account,
        )  # fmt: skip
        return self._give(party, made).number

    async def grant(self, id: int, to: str, rights: list[str] | None, expires: float, lasting: bool) -> int:
        node = self._node
        server, held = node.server(to), node.tree.get(id)
        if DELEGATE not in held.rights:
            raise NotAllowed(method="grant", needed=DELEGATE, held=tuple(sorted(held.rights)))
        self._elsewhere(held, to)
        self._offered(held)
        wanted = held.rights - {DELEGATE} if rights is None else frozenset(rights)
        node.tree.hold(held, wanted, "grant")
        parent = held  # of a lasting one, what lasts: a person's own capability goes when they detach
        while lasting and not parent.lasting:
            parent = node.tree.get(parent.parent)
        expiry, account = self._expiry(held, expires), server.spec.account
        if parent.badge == held.badge:
            made = node.tree.grant(
                parent.id,
                by=parent.holder,
                to=to,
                rights=wanted,
                expiry=expiry,
                lasting=lasting,
                account=account,
            )
        else:
            made = node.tree.mint(
                parent.id, by=parent.holder, to=to, badge=held.badge, rights=wanted, expiry=expiry,
                lasting=lasting, account=account,
            )  # fmt: skip
        await self._record(made)
        reach("grant: committed")
        # Decided, so it is seen through. A swap has two processes, and which of them will be the server it alone knows.
        with trio.CancelScope(shield=True):
            try:
                async with node.changing(server):
                    if not node.tree.has(made.id):  # taken back while its row was on the way
                        raise NotFound(what="capability", name=written(id))
                    with self._or_none(made):
                        processes = list(node.processes_of(to))
                        if not lasting and not processes:  # nobody whose end would be its end
                            raise WrongState(server=to, state=server.state, wanted="serving")
                        for serving in processes:
                            if not lasting:
                                serving.session.add(made.id)
                            self._authority.deliver(made, serving)
            except (AtollError, OSError):
                await self._take_out(made)
                raise
        return made.id

    async def transfer(self, party: Party, id: int, channel: int) -> int:
        node = self._node
        held = self._mine(party, id)
        peer = await self.peer(party, channel)
        self._elsewhere(held, peer.holder)
        made = node.tree.grant(id, by=party.holder, to=peer.holder, account=party.account)
        peer.session.add(made.id)
        with self._or_none(made):
            self._authority.deliver(made, peer, channel)
        self._events.capabilities((made,), None)
        if peer.connection is not None:
            await peer.connection.flushed()
        return made.id

    async def peer(self, party: Party, number: int) -> Party:
        """Who is at the other end of a channel of the party's: waits while a server is swapped or restarted. Raises
        `NotFound`, `BadRequest`."""
        node = self._node
        channel = node.channels.get(number)
        if channel is None or party.holder not in (channel.client.holder, channel.server):
            raise NotFound(what="channel", name=str(number))
        if channel.server == party.holder:
            return channel.client
        server = node.servers.get(channel.server)
        if server is not None:
            await server.arrived()
        serving = node.serving(channel.server)
        if channel.server == KERNEL or serving is None:
            raise BadRequest(
                where="channel", expected="one to a server that runs", got=f"one to {channel.server}"
            )
        return serving

    async def _record(self, made: Capability) -> None:
        node = self._node
        if not made.lasting:
            self._events.capabilities((made,), None)
            return
        with self._or_none(made):
            await node.store.commit(write_made(node.store.batch(f"grant {made.id}"), made).changes())

    @contextmanager
    def _or_none(self, made: Capability) -> Iterator[None]:
        """What cannot be recorded, or put into its holder's hands, is none. Raises `Overloaded` where no channel can be made
        for it now."""
        try:
            yield
        except BaseException as error:
            if self._node.tree.has(made.id):
                self._authority.clear(self._node.tree.revoke(made.id, by=None))
            if isinstance(error, OSError) and short_of_descriptors(error):
                raise Overloaded("the kernel's file descriptors") from None
            if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise Overloaded("this machine's memory") from None
            raise

    async def _take_out(self, made: Capability) -> None:
        """Of the record: it came to nothing after that said that it is."""
        ended = Ended([made])
        self._events.capabilities((), ended)
        batch = write_ended(self._node.store.batch(f"revoke {made.id}"), ended)
        if batch:
            try:
                await self._node.store.commit(batch.changes())
            except AtollError:
                self._node.store.owe(batch)  # without it the next boot gives what nobody was given

    def _mine(self, party: Party, id: int) -> Capability:
        held = self._node.tree.get(id)
        if held.holder != party.holder:
            raise NotFound(what="capability", name=written(id))
        return held

    def _offered(self, held: Capability) -> None:
        if not self._authority.offered(held):
            raise NotFound.among(
                f"interface of {held.server} called",
                held.interface,
                self._authority.interfaces.get(held.server, ()),
            )

    @staticmethod
    def _elsewhere(held: Capability, to: str) -> None:
        """A server is no client of its own: a channel has two ends, in two processes."""
        if held.server == to:
            raise BadRequest(
                where="capability",
                expected=f"one of another server than {to}",
                got=f"one of {to}'s own objects",
            )

    def _expiry(self, held: Capability, expires: float) -> int:
        if not 0 <= expires <= LONGEST:
            expected = f"seconds up to {LONGEST:.0f}, 0 for no bound of its own"
            raise BadRequest(where="expires", expected=expected, got=str(expires))
        if not expires:
            return held.expiry  # also of what is made from an ancestor of it, which may live longer
        asked = self._node.lived() + int(expires * 1e9)
        return asked if held.expiry == NEVER else min(asked, held.expiry)

    # taking -------------------------------------------------------------------------------------------------

    async def revoke(self, party: Party, operator: bool, id: int, cancel: bool) -> int:
        """Take a capability back, and all derived from it. No new call is served under any once this returns."""
        taken = self._unwritten.get(id)
        if taken is None or not (operator or taken.by == party.holder):
            taken = self._take(party, operator, id)
        # Whoever gives up waiting has taken it back all the same: without its row the next boot would bring it back.
        with trio.CancelScope(shield=True):
            await self._windows.passed(
                serving for server in taken.servers for serving in self._node.processes_of(server)
            )
            if cancel:
                self._cancel(taken.ended.gone)
            reach("revoke: cleared")
            batch = write_ended(self._node.store.batch(f"revoke {id}"), taken.ended)
            if batch:
                try:
                    await self._node.store.commit(batch.changes())
                except AtollError:
                    if id not in self._owed:  # however often somebody tries again
                        self._node.store.owe(batch)  # without it the next boot brings it back
                        self._owed.add(id)
                    raise
            reach("revoke: committed")
        self._owed.discard(id)
        if self._unwritten.pop(id, None) is not None:
            self._events.capabilities((), taken.ended)
        return len(taken.ended.gone)

    def _take(self, party: Party, operator: bool, id: int) -> _Taken:
        """Out of the tree and the tables."""
        if self._node.tree.get(id).holder == KERNEL:
            raise BadRequest(
                where=f"revoke capability {written(id)}",
                expected="one that is not the kernel's own",
                got="one without which the node has no store",
            )
        ended = self._node.tree.revoke(id, by=None if operator else party.holder)
        taken = self._unwritten[id] = _Taken(party.holder, ended, self._authority.clear(ended))
        return taken

    def _cancel(self, gone: Iterable[Capability]) -> None:
        """Have the servers give up calls in hand under what was revoked."""
        for capability in gone:
            for serving in self._node.processes_of(capability.server):
                serving.send(CancelCalls(slot=capability.slot, generation=capability.generation))
