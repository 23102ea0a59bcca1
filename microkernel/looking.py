"""What the node is, for whoever may observe it: the rows that system calls return."""

from __future__ import annotations

import heapq
import os
from collections.abc import Collection
from hashlib import blake2b

import msgspec

from atoll.ipc.errors import NotFound
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.control import Described
from atoll.ipc.system.measurement import Measurement
from atoll.ipc.system.records import VersionRow

from .channels import Channel
from .events import Events
from .image import KeyspaceBinding
from .image_check import STORE
from .node import Node
from .parties import KERNEL, Attached, Party, Serving
from .protection.plan import ladder
from .readers import Readers
from .server import Server
from .usage import usage

REASON_MOST = 500
"""Characters of why a server does not serve: one reply tells of all servers, and it may be a server's own word."""
CAPS_MOST = 192 << 10
"""Bytes of a list of capabilities that are told at once."""
BYTES_MOST = (1 << 63) - 1


class Looking:
    def __init__(self, node: Node, events: Events, readers: Readers) -> None:
        self._node = node
        self._events = events
        self._readers = readers

    def node(self) -> calls.NodeRow:
        node = self._node
        return calls.NodeRow(
            name=node.place.name, folder=str(node.place.folder), boot=node.boot, version=release(),
            image_path=node.place.image_path, image=node.checked.text, started=node.started,
            weakenings=[
                calls.Weakening(server=server, mechanism=mechanism, reason=reason)
                for server, mechanism, reason in node.weakenings
            ],
        )  # fmt: skip

    def ps(self) -> list[calls.ProcessRow]:
        servers = [self.process(server) for server in self._node.servers.values()]
        store = self._node.servers[STORE]
        return servers + [self._row(store, reader, reader.reader) for reader in self._readers.processes()]

    def process(self, server: Server) -> calls.ProcessRow:
        """A server and its process, with what /proc and its status say of it."""
        return self._row(server, server.serving, server.name)

    def _row(self, server: Server, serving: Serving | None, name: str) -> calls.ProcessRow:
        node, main = self._node, name == server.name
        pid = serving.pid if serving is not None else 0
        memory, cpu = usage(pid)
        signs = serving.status.signs() if serving is not None else None
        level = server.plan.level if server.plan is not None else server.spec.level
        return calls.ProcessRow(
            server=name, state=server.state if main else "serving", pid=pid, level=level,
            version=server.version.hash, start=server.start,
            uid=node.uid(server) or os.geteuid(),
            started=serving.started if serving is not None else 0, restarts=server.restarts if main else 0,
            memory=memory, cpu=cpu, calls=signs.served if signs else 0, refused=self._events.count(name),
            channels=len(node.channels.of_server(name)),
            interfaces=[offer.name for offer in server.description.interfaces],
            reason=server.reason[:REASON_MOST] if main else "", late=signs.late if signs else 0,
        )  # fmt: skip

    def measurement(self, party: Party, channel: int) -> Measurement:
        """What the process is that is the client of a channel that `party` serves. Raises `NotFound`."""
        node = self._node
        found = node.channels.get(channel)
        if found is None or found.server != party.holder:
            raise NotFound(what="channel that you serve", name=str(channel))
        client = found.client
        if not isinstance(client, Serving) or client.plan is None:
            raise NotFound(what="server's process at the other end of channel", name=str(channel))
        server = node.server(client.holder)
        named = node.image.server.get(server.name) if server.spec.image else None
        return Measurement(
            server=server.name,
            version=client.version,
            level=client.plan.level,
            wanted=server.spec.level if named is None else node.image.level(server.name),
            mechanisms=list(client.plan.in_force),
            image=""
            if named is None
            else blake2b(msgspec.json.encode(named, enc_hook=repr), digest_size=16).hexdigest(),
        )

    def protection(self, server: Server) -> calls.Protection:
        plan = server.plan
        if plan is None:
            raise calls.WrongState(server=server.name, state=server.state, wanted="started once")
        why = {weakening.mechanism: weakening.reason for weakening in plan.weakenings}
        without = {mechanism.name: f"not at level {plan.level}" for mechanism in ladder(plan.wanted)}
        without |= {mechanism.name: "needless here" for mechanism in ladder(plan.level)}
        mechanisms = [
            calls.Mechanism(
                name=mechanism.name,
                in_force=mechanism.name in plan.in_force,
                stops=mechanism.stops
                if mechanism.name in plan.in_force
                else why.get(mechanism.name, without[mechanism.name]),
            )
            for mechanism in ladder(plan.wanted)
        ]
        return calls.Protection(
            server=server.name, wanted=plan.wanted, level=plan.level,
            mechanisms=mechanisms,
            weakenings=[
                calls.Weakening(server=server.name, mechanism=weak.mechanism, reason=weak.reason)
                for weak in plan.weakenings
            ],
        )  # fmt: skip

    def graph(self) -> list[calls.Edge]:
        edges: dict[tuple[str, str, str], frozenset[str]] = {}
        for capability in self._node.tree:
            if capability.parent and capability.server != KERNEL:
                key = (capability.holder, capability.server, capability.interface)
                edges[key] = edges.get(key, frozenset()) | capability.rights
        return [
            calls.Edge(holder=holder, server=server, interface=interface, rights=sorted(rights))
            for (holder, server, interface), rights in edges.items()
        ]

    def caps(self, server: str, after: int) -> list[calls.CapabilityRow]:
        node = self._node
        if server:
            node.server(server)
        wanted = (held for held in node.tree if held.id > after and server in ("", held.holder, held.server))
        rows, size = list[calls.CapabilityRow](), 0
        for held in heapq.nsmallest(calls.CAPS_AT_ONCE, wanted, key=lambda held: held.id):
            row = calls.CapabilityRow(
                number=held.id, parent=held.parent, holder=held.holder, server=held.server, interface=held.interface,
                badge=held.badge, rights=sorted(held.rights), lasting=held.lasting, made=held.id >> 32,
                expires=held.expiry,
            )  # fmt: skip
            size += len(msgspec.msgpack.encode(row))
            if rows and size > CAPS_MOST:
                break
            rows.append(row)
        return rows

    def versions(self, server: str, rows: list[VersionRow]) -> list[calls.VersionRow]:
        node = self._node
        added = {(row.package, row.hash): row for row in rows}
        found = []
        for each in node.servers.values():
            if server not in ("", each.name):
                continue
            for version in node.versions.all():
                if version.package == each.spec.package:
                    row = added.get((version.package, version.hash))
                    found.append(
                        calls.VersionRow(
                            version=version.hash,
                            server=each.name,
                            package=version.package,
                            loaded=row.added if row is not None else 0,
                            running=version.hash == each.version.hash,
                        )
                    )
        return sorted(found, key=lambda version: version.loaded, reverse=True)

    def channels(self, server: str) -> list[calls.ChannelRow]:
        return [
            calls.ChannelRow(
                channel=channel.number, client=channel.client.holder, epoch=channel.epoch, calls=0, pending=0,
                bytes=_passed(channel),
            )
            for channel in self._node.channels.of_server(server)
        ]  # fmt: skip

    def published(self, keyspaces: Collection[str]) -> list[calls.PublishedTable]:
        """Of every server whose need is bound to one of these keyspaces."""
        return [
            calls.PublishedTable(server=server.name, name=name, keyspace=bound.keyspace, shape=shape)
            for server in self._node.servers.values()
            for name, shape in server.description.tables.items()
            if isinstance(bound := server.spec.needs.get(shape.need), KeyspaceBinding)
            and bound.keyspace in keyspaces
        ]

    def attachments(self, after: int) -> list[calls.AttachmentRow]:
        node = self._node
        there = (each for each in node.parties.values() if isinstance(each, Attached) and each.number > after)
        return [
            calls.AttachmentRow(
                number=party.number, pid=party.pid, uid=party.uid, command=party.program,
                rights=sorted(party.rights), since=party.since, channels=len(node.channels.of_client(party)),
            )
            for party in heapq.nsmallest(calls.ATTACHMENTS_AT_ONCE, there, key=lambda party: party.number)
        ]  # fmt: skip

    def interfaces(self, server: Server) -> list[Described]:
        if not server.offered:
            raise calls.WrongState(server=server.name, state=server.state, wanted="started once")
        return list(server.offered)


def release() -> str:
    """The release of Atoll that runs."""
    from importlib import (
        metadata,  # a tenth of what the kernel imports, for one word that is seldom asked for
    )

    try:
        return metadata.version("atoll")
    except metadata.PackageNotFoundError:
        return "source"


def _passed(channel: Channel) -> int:
    """Bytes of requests in this epoch, as its memory says, in which either end may write what it likes."""
    lanes = channel.taken()[: channel.shape.lanes]
    return min(sum(taken - channel.base for taken in lanes if taken >= channel.base), BYTES_MOST)
