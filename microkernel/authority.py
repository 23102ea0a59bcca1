"""Capabilities made real: the tree says who may, this says it to tables, channels and processes.

The order is always the same. Giving: tree, row, table entry, packet. Taking: tree, table entries, notices, windows, row.
"""

from __future__ import annotations

from collections.abc import Iterable

from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.transport import ChannelTransport
from atoll.ipc.errors import NotFound
from atoll.ipc.proxy import bind
from atoll.ipc.system.control import AddSegment, CloseChannel, Deliver, Port, Shape
from atoll.ipc.system.state import State

from .accounts import CHANNEL
from .capabilities import Capability, Ended
from .channels import Channel
from .events import Events
from .grants import Grants
from .holders import Holders
from .node import Node
from .own_loop import LoopHost
from .parties import KERNEL, Party, Serving
from .rights import mask
from .tables import Table

SMALL = Shape(lanes=3, ring_bits=14, bulk_bits=18)
"""Of channels to the kernel: system calls are short."""
USUAL = Shape()
RIGHTS = ("observe", "operate", "serve")
"""Of the kernel's interface."""
CHECK_MOST = 240
"""Characters of an accusation that others are told: it is the accuser's word, and what tells of it is a packet itself."""


class Authority:
    def __init__(self, node: Node, events: Events, grants: Grants, holders: Holders) -> None:
        self._node = node
        self._events = events
        self._grants = grants
        self._holders = holders
        self._clients: dict[str, ClientChannel] = {}
        """The kernel's own ends, by server."""
        self._host = LoopHost(self._own_peer_misbehaved)
        self.tables: dict[str, Table] = {}
        self.interfaces: dict[str, list[str]] = {KERNEL: ["Kernel"]}
        """By server, in the order in which tables number them."""
        self._closed: set[str] = set()
        """Servers of which there will be no process until a person wants one."""
        self.services: dict[int, int] = {}
        """By capability the best class of service it may have (0 is the dearest), as far as it was asked for."""

    def table(self, server: str) -> Table:
        found = self.tables.get(server)
        if found is None:
            found = self.tables[server] = Table(server)
            if server == KERNEL:
                self._node.loop.add_segment(0, found.segments[0].map)
        return found

    def offered(self, capability: Capability) -> bool:
        """Whether there is what it is for. What was granted for good outlives a package that drops an interface, and a boot
        on which a loaded server cannot be there."""
        return capability.interface in self.interfaces.get(capability.server, ())

    def stands(self, capability: Capability) -> bool:
        """Whether it is its holder's from process to process, and is for what there is."""
        return capability.lasting and capability.parent != 0 and self.offered(capability)

    # channels -----------------------------------------------------------------------------------------------

    def connect(self, party: Party, server: str, *, past_limit: bool = False) -> Channel:
        """The channel from a party to a server, made at the first time and charged to the party's account.

        Raises `QuotaExceeded`, but for `past_limit`."""
        node = self._node
        channel = node.channels.between(party, server)
        if channel is not None:
            return channel
        node.ledger.charge_all(party.account, CHANNEL, past_limit=past_limit)
        try:
            pending = 0 if party is node.kernel else node.ledger.limit(party.account, "pending")
            shape = SMALL if server == KERNEL else USUAL
            channel = node.channels.make(party, server, shape, pending, node.now())
        except BaseException:
            node.ledger.release_all(party.account, CHANNEL)
            raise
        if server in self._closed:
            channel.close_for_client()
        self._events.channel(channel)
        self._give_to_server(channel)
        self._give_to_client(channel)
        return channel

    def _give_to_server(self, channel: Channel) -> None:
        if channel.server == KERNEL:
            opened, (memory, _) = channel.opening(as_client=False)
            self._node.loop.add(opened, memory, channel.server_doorbell())
            return
        serving = self._node.serving(channel.server)
        if serving is not None:
            self.give(channel, serving)

    def give(self, channel: Channel, serving: Serving, positions: tuple[int, ...] = ()) -> None:
        """Give a channel to a process to serve, from `positions` (per lane consumed, then produced) or a fresh epoch."""
        half = len(positions) // 2
        at = (*positions[:half][:3], *positions[half:][:3])
        serving.send(*channel.opening(as_client=False, positions=at))
        serving.served.add(channel.number)

    def give_rest(self, server: str, serving: Serving) -> None:
        """Give a process the channels that were made while it was about to be replaced, and was not."""
        for channel in self._node.channels.of_server(server):
            if channel.number not in serving.served:
                self.give(channel, serving)

    def _give_to_client(self, channel: Channel) -> None:
        node, party = self._node, channel.client
        if party is node.kernel:
            opened, (memory, bell) = channel.opening(as_client=True)
            client = ClientChannel(opened, memory, bell, party.notice.memory.map, self._host)
            node.loop.add_client(client)
            self._clients[channel.server] = client
        else:
            party.send(*channel.opening(as_client=True))

    def disconnect(self, channel: Channel, reason: str) -> None:
        """End a channel: both ends are told, and what it cost is credited."""
        node = self._node
        told = CloseChannel(channel=channel.number, reason=reason)
        if channel.server == KERNEL or channel.client is node.kernel:
            node.loop.remove(channel.number)
        if channel.server != KERNEL:
            for serving in node.parties.values():
                if isinstance(serving, Serving) and channel.number in serving.served:
                    serving.send(told)
                    serving.served.discard(channel.number)
        if not channel.client.gone:
            channel.close_for_client()  # a thread that waits in the C core hears no packet
            channel.client.send(told)
        self._grants.closed(channel.number)
        self._events.channel(channel, reason)
        node.channels.forget(channel)
        node.ledger.release_all(channel.client.account, CHANNEL)

    def misbehaved(self, accuser: str, channel: int, check: str) -> None:
        """A party says that the peer of a channel wrote what cannot be: the channel ends."""
        found = self._node.channels.get(channel)
        if found is None:
            return
        client, server = found.client.holder, found.server
        if accuser not in (client, server):
            self._events.refuse(accuser, "kernel", "accusing the peer of a channel that is not its own")
            return
        check = check[:CHECK_MOST]
        peer = server if client == accuser else client
        self._events.event("misbehaved", peer, f"channel {channel} between {client} and {server}: {check}")
        self._events.refuse(peer, "protocol", f"{accuser} says that it broke the protocol: {check}")
        self.disconnect(found, f"{peer} broke the protocol: {check}")
        if found.client is self._node.kernel:
            # It has no channel but to the store, and there is no way to go on whose rows would not be lost.
            self._node.fail(f"the kernel's channel to {server} is gone: {peer} broke the protocol: {check}")

    def _own_peer_misbehaved(self, channel: int, check: str) -> None:
        self.misbehaved(KERNEL, channel, check)

    def state_proxy(self, capability: Capability) -> State:
        """The store's interface through a capability of the kernel's own."""
        port = self.admit(capability, self._node.kernel)
        return bind(State, ChannelTransport(self._clients[capability.server], port))

    # giving -------------------------------------------------------------------------------------------------

    def admit(self, capability: Capability, party: Party) -> Port:
        """Make a capability valid on its holder's channel, and say how it is addressed."""
        channel = self.connect(party, capability.server)
        self.enter(capability, channel)
        port = self.port(capability, channel)
        self._holders.admitted(capability, party, port)
        return port

    def deliver(self, capability: Capability, party: Party, channel: int = 0) -> None:
        """Put a capability into a process's hands; its number is the token, which messages of `channel` may name."""
        port = self.admit(capability, party)
        party.send(Deliver(token=capability.id, port=port, channel=channel))

    def deliver_again(self, capability: Capability, party: Party) -> None:
        """Put what a server was granted for good into the hands of its next process: nobody asks for more by that, so no
        limit that others use up meanwhile, or that is lower now, keeps the server down."""
        self.connect(party, capability.server, past_limit=True)
        self.deliver(capability, party)

    def port(self, capability: Capability, channel: Channel) -> Port:
        """How the client of a channel addresses a capability on it."""
        return Port(
            channel=channel.number,
            slot=capability.slot,
            generation=capability.generation,
            interface=capability.interface,
            rights=tuple(sorted(capability.rights)),
            service=self.service(capability),
        )

    def service(self, capability: Capability) -> int:
        """The best class of service that calls under a capability may have: as it was bound, or as what it was made from.
        Kept once known: what it was made from may end first."""
        known = self.services.get(capability.id)
        if known is None:
            known = self.service(self._node.tree.get(capability.parent)) if capability.parent else 0
            self.services[capability.id] = known
        return known

    def enter(self, capability: Capability, channel: Channel) -> None:
        """Write the table entry of a capability."""
        node, table = self._node, self.table(capability.server)
        for index in table.make_room(capability.slot):
            if capability.server == KERNEL:
                node.loop.add_segment(index, table.segments[index].map)
            else:
                for serving in node.processes_of(capability.server):
                    serving.send(AddSegment(index=index), (table.segments[index].descriptor,))
        table.write(
            capability,
            channel=channel.number,
            interface=self.interfaces[capability.server].index(capability.interface),
            rights=node.tree.rights_map(capability.server, capability.interface),
            service=self.service(capability),
            now=node.lived(),
        )

    def held(self, channel: int, slot: int, generation: int) -> Capability:
        """The capability that a party addresses so. Raises `NotFound`."""
        found = self._node.channels.get(channel)
        capability = None if found is None else self._node.tree.at(found.server, slot, generation)
        if found is None or capability is None or capability.holder != found.client.holder:
            raise NotFound(
                what="capability", name=f"slot {slot}, generation {generation} of channel {channel}"
            )
        return capability

    def check(self) -> list[str]:
        """That tables say what the tree says, as sentences about what they say beside it: an entry that is valid is of a
        capability that there is, with its badge and rights, on a channel of its holder's."""
        wrong = []
        for server, table in self.tables.items():
            for entry in table.standing():
                capability = self._node.tree.at(server, entry.slot, entry.generation)
                if capability is None or capability.id != entry.capability:
                    place = f"slot {entry.slot}, generation {entry.generation},"
                    wrong.append(f"table of {server}: {place} is valid, and no capability is there")
                    continue
                rights = mask(capability.rights, self._node.tree.rights_map(server, capability.interface))
                if (entry.badge, entry.rights) != (capability.badge, rights):
                    wrong.append(f"table of {server}: slot {entry.slot} has another badge or other rights")
                channel = self._node.channels.get(entry.channel)
                if channel is not None and channel.client.holder != capability.holder:
                    wrong.append(
                        f"table of {server}: slot {entry.slot} is on a channel of {channel.client.holder}"
                    )
        return wrong

    # taking -------------------------------------------------------------------------------------------------

    def clear(self, ended: Ended) -> set[str]:
        """Clear the entries of what ended and have every server concerned check again. Returns those servers."""
        servers: set[str] = set()
        for capability in ended.gone:
            self.services.pop(capability.id, None)
            table = self.tables.get(capability.server)
            if table is not None and capability.slot >= 0:
                table.clear(capability)
                servers.add(capability.server)
        for server in servers:
            if server == KERNEL:
                self._node.kernel.notice.revoked()
            for serving in self._node.processes_of(server):
                serving.notice.revoked()
        return servers

    def leave(self, party: Party, capabilities: Iterable[int]) -> None:
        """A party is gone: these session capabilities end, its channels close, its buffers go, its account is credited."""
        node = self._node
        ended = node.tree.let_go(capabilities)
        self.clear(ended)
        party.gone = True
        for channel in node.channels.of_client(party):
            self.disconnect(channel, f"{party.holder} has ended")
        self._grants.leave(party)
        node.parties.pop(party.number, None)
        node.ledger.release_all(party.account, party.cost)
        self._events.capabilities((), ended)

    def server_died(self, serving: Serving) -> None:
        """The channels that a dead process served wait for the next one."""
        for channel in self._node.channels.of_server(serving.holder):
            channel.server_died(self._node.channels.new_base())
            self._look(channel)

    def served_again(self, server: str) -> None:
        self._closed.discard(server)
        for channel in self._node.channels.of_server(server):
            channel.served_again()

    def closed(self, server: str) -> None:
        """There will be no process of a server until a person wants one: its callers are told, also those to come."""
        self._closed.add(server)
        self._grants.server_left(server)
        for channel in self._node.channels.of_server(server):
            channel.close_for_client()
            self._look(channel)

    def _look(self, channel: Channel) -> None:
        """The kernel's own client has no doorbell that would wake it: it is right here."""
        if channel.client is self._node.kernel:
            self._clients[channel.server].look()
