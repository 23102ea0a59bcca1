"""A server's needs, bound: which capability stands for each, and what its process is told of it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.naming import badge_number
from atoll.ipc.system import control
from atoll.ipc.system.calls import PREFIX
from atoll.ipc.system.records import NeedRow, written_by_the_node
from atoll.ipc.system.state import Retention

from . import disclosure
from .authority import Authority
from .capabilities import Capability
from .capability_rows import write_ended, write_made
from .changes import Batch
from .image import (
    KEYSPACE_RIGHTS,
    PURGE,
    SERVICES,
    ConfigBinding,
    FolderBinding,
    KeyspaceBinding,
    KeyspaceSpec,
    ListenBinding,
    ServerBinding,
)
from .image_check import KINDS, STORE, STORE_INTERFACE
from .node import Node
from .parties import Serving
from .server import Server, keys_of
from .uids import give

LOCK_DESCRIPTOR = 4
"""The number under which `state` has the node's lock."""


class Wanted(NamedTuple):
    """What a need's binding asks for."""

    server: str
    interface: str
    badge: int
    rights: frozenset[str]
    service: int


def wanted(node: Node, server: Server, need: str) -> Wanted | None:
    """What a need asks of the capability tree; None for one that is no capability."""
    bound, own = server.needs[need], SERVICES.index(server.spec.service)
    if isinstance(bound, KeyspaceBinding):
        badge = node.keyspaces.get(bound.keyspace)
        if badge is None:
            raise NotFound.among("keyspace", bound.keyspace, node.keyspaces)
        return Wanted(STORE, STORE_INTERFACE, badge, frozenset(bound.rights), own)
    if not isinstance(bound, ServerBinding):
        return None
    offers = {offer.name: offer for offer in node.server(bound.server).description.interfaces}
    about = server.description.needs.get(need)
    interface = bound.interface or (about.interface if about is not None else "") or next(iter(offers))
    if interface not in offers:
        raise BadRequest(
            where=f"need {need!r} of {server.name}",
            expected=f"a server that offers {interface}",
            got=f"{bound.server}, which offers {', '.join(offers) or 'nothing'}",
        )
    name = server.name if bound.badge is None else bound.badge
    rights = bound.rights if bound.rights or not server.spec.load else offers[interface].rights
    service = max(own, SERVICES.index(bound.service))
    return Wanted(bound.server, interface, badge_number(name) if name else 0, frozenset(rights), service)


def keyspaces_of(server: Server) -> list[str]:
    """The keyspaces that a server is bound to."""
    return [bound.keyspace for bound in server.spec.needs.values() if isinstance(bound, KeyspaceBinding)]


def named_keyspaces(server: Server) -> list[str]:
    """The keyspaces that whoever loads a server names. Raises `BadRequest` for one that the node itself writes."""
    bound = [
        bound.keyspace
        for need, bound in server.spec.needs.items()
        if isinstance(bound, KeyspaceBinding) and need != control.CALLS
    ]
    for name in bound:
        if written_by_the_node(name):
            raise BadRequest(
                where=f"load {server.name}",
                expected="a keyspace of servers",
                got=f"{name}, which the node writes",
            )
    return bound


def retention_of(keyspace: str) -> Retention:
    """How much of its past a keyspace keeps that no image names. What was deleted of recorded calls is of no use."""
    return Retention(age=0.0) if keyspace.startswith(PREFIX) else Retention()


def known(names: Iterable[str], keyspaces: Collection[str]) -> None:
    """Hold a load to the keyspaces that are there: a misspelt one must not come into being. Raises `NotFound`."""
    for name in names:
        if name not in keyspaces:
            raise NotFound.among("keyspace", name, keyspaces)


def complete(server: Server) -> None:
    """Give keyspace needs of a loaded server that nobody bound a keyspace of their own. Raises `NotFound` for a binding of
    no need, `BadRequest` for one that does not fit, and for another need that is not bound."""
    needs = dict(server.spec.needs)
    for need, bound in needs.items():
        if need == control.CALLS:
            continue
        needed = server.description.needs.get(need)
        if needed is None:
            raise NotFound.among(f"need of {server.name} called", need, server.description.needs)
        if KINDS[type(bound)] != needed.kind:
            raise BadRequest(
                where=f"load {server.name}, need {need!r}",
                expected=f"a {needed.kind}",
                got=f"a {KINDS[type(bound)]}",
            )
        if isinstance(bound, ServerBinding) and bound.server == server.name:
            raise BadRequest(
                where=f"load {server.name}, need {need!r}",
                expected=f"a server other than {server.name} itself",
                got=server.name,
            )
    for need, about in server.description.needs.items():
        if need in needs or about.optional:
            continue
        if about.kind == "keyspace":
            rights = (*KEYSPACE_RIGHTS, PURGE) if about.private else KEYSPACE_RIGHTS
            needs[need] = KeyspaceBinding(keyspace=f"{server.name}.{need}", rights=rights)
        elif about.kind == "folder":
            needs[need] = FolderBinding(folder=need)
        else:
            raise BadRequest(
                where=f"load {server.name}",
                expected=f"the need {need!r} ({about.kind}) to be bound",
                got="no binding",
            )
    if server.spec.record and server.keeps_secrets:
        raise BadRequest(
            where=f"load {server.name}: record",
            expected="no record of a server with private keyspaces or their keys",
            got="true",
        )
    for need, fault in server.description.config_faults.items():
        where = ".".join((need, *map(str, fault.path)))
        raise BadRequest(where=f"load {server.name}, {where}", expected=fault.expected, got=fault.found)
    server.spec = msgspec.structs.replace(server.spec, needs=needs)


def as_private(server: Server, keyspaces: Mapping[str, KeyspaceSpec]) -> None:
    """Hold a server that a person loads or swaps to what the image says of its keyspaces: one that took a private one for
    plain would write into it in the clear; what it has by two needs a purge would not reach by each. Raises `BadRequest`."""
    first: dict[str, str] = {}
    for need, bound in server.spec.needs.items():
        about = server.description.needs.get(need)
        if not isinstance(bound, KeyspaceBinding) or about is None:
            continue
        if about.private and first.setdefault(bound.keyspace, need) != need:
            raise BadRequest(
                where=f"{server.name}, need {need!r}",
                expected="one need of a server for a private keyspace",
                got=f"another one beside {first[bound.keyspace]!r}: {bound.keyspace}",
            )
        spec = keyspaces.get(bound.keyspace)
        if spec is not None and spec.private != about.private:
            kinds = ("a private keyspace", "one that is not private")
            expected, got = kinds if about.private else kinds[::-1]
            raise BadRequest(
                where=f"{server.name}, need {need!r}", expected=expected, got=f"{got}: {bound.keyspace}"
            )


def undisclosed(server: Server, servers: Iterable[Server]) -> None:
    """Hold a server that a person loads or swaps, among the node's, to it that no record has what a private keyspace holds.
    Raises `BadRequest`."""
    known = {each.name: each for each in (*servers, server)}
    edges = [
        (name, bound.server)
        for name, each in known.items()
        for bound in each.spec.needs.values()
        if isinstance(bound, ServerBinding)
    ]
    recorded = [name for name, each in known.items() if each.spec.record]
    private = {name for name, each in known.items() if each.keeps_private}
    for way in disclosure.ways(edges, recorded, private):
        if server.name in way.servers:
            raise BadRequest(
                where=server.name, expected=disclosure.EXPECTED, got=f"one of {way.recorded} ({way})"
            )


def lost(node: Node, server: Server) -> list[str]:
    """The needs whose capability was taken back since it was bound."""
    return [
        need
        for need in server.needs
        if (id := node.bound.get((server.name, need))) is not None and not node.tree.has(id)
    ]


class Needs:
    """Makes needs into capabilities, and those into what a process is told."""

    def __init__(self, node: Node, authority: Authority) -> None:
        self._node = node
        self._authority = authority

    def bind(self, server: Server, batch: Batch) -> list[int]:
        """Find or make the lasting capability of each need; the rows go into the batch. Returns those that stand for no need
        any more, for `drop`: a process may still use them."""
        replaced = []
        for need in server.needs:
            what = wanted(self._node, server, need)
            if what is None:
                continue
            known = self._node.bound.get((server.name, need), 0)
            held = next((held for held in self._node.tree.held_by(server.name) if held.id == known), None)
            if held is not None:
                same = (held.server, held.interface, held.badge, held.rights) == what[:4]
                if same:
                    self._authority.services[held.id] = what.service
                    continue
                replaced.append(held.id)
            made = self._make(server, what)
            self._authority.services[made.id] = what.service
            self._node.bound[server.name, need] = made.id
            write_made(batch, made)
            batch.put(NeedRow(server=server.name, need=need, capability=made.id))
        return replaced

    def drop(self, capabilities: Iterable[int], batch: Batch) -> None:
        """End capabilities that stand for no need any more. What was taken back before is passed over."""
        for id in capabilities:
            if self._node.tree.has(id):
                ended = self._node.tree.revoke(id, by=None)
                self._authority.clear(ended)
                write_ended(batch, ended)

    def told(
        self, server: Server, party: Serving, capabilities: dict[str, Capability]
    ) -> dict[str, control.Need]:
        """What `Start` says of each need. `capabilities`: by need, those that this process uses."""
        needs: dict[str, control.Need] = {}
        sockets = 0
        for need, bound in server.spec.needs.items():
            match bound:
                case KeyspaceBinding():
                    keys = capabilities.get(keys_of(need))
                    needs[need] = control.KeyspaceNeed(
                        port=self._authority.admit(capabilities[need], party),
                        keys=None if keys is None else self._authority.admit(keys, party),
                    )
                case ServerBinding():
                    needs[need] = control.ServerNeed(port=self._authority.admit(capabilities[need], party))
                case ConfigBinding(config=table):
                    needs[need] = control.ConfigNeed(value=msgspec.Raw(msgspec.msgpack.encode(table)))
                case ListenBinding():
                    needs[need] = control.SocketNeed(descriptor=sockets)
                    sockets += 1
                case FolderBinding():
                    needs[need] = control.FolderNeed(path=str(folder_of(self._node, server, bound)))
        if server.name == STORE:
            given = {} if "config" not in needs else server.spec.needs["config"].config  # type: ignore[union-attr]
            owned = {"role": "reader"} if party.reader else {"lock": LOCK_DESCRIPTOR}
            table = {**given, "folder": str(store_folder(self._node)), "boot": self._node.boot, **owned}
            needs["config"] = control.ConfigNeed(value=msgspec.Raw(msgspec.msgpack.encode(table)))
        return needs

    def _make(self, server: Server, what: Wanted) -> Capability:
        root = self._node.tree.root(what.server, what.interface)
        account = server.spec.account
        if what.badge:
            return self._node.tree.mint(
                root.id,
                by=root.holder,
                to=server.name,
                badge=what.badge,
                rights=what.rights,
                lasting=True,
                account=account,
            )
        return self._node.tree.grant(
            root.id, by=root.holder, to=server.name, rights=what.rights, lasting=True, account=account
        )


def folder_of(node: Node, server: Server, bound: FolderBinding) -> Path:
    return node.place.folder / "data" / server.name / bound.folder


def store_folder(node: Node) -> Path:
    return node.place.folder / "data" / STORE


def folders(node: Node, server: Server) -> list[Path]:
    """The folders that a server's process may write, made and given to its user."""
    found = [
        folder_of(node, server, bound)
        for bound in server.spec.needs.values()
        if isinstance(bound, FolderBinding)
    ]
    if server.name == STORE:
        found.append(store_folder(node))
    for folder in found:
        give(folder, node.uid(server))
    return found


def sockets(server: Server) -> list[socket.socket]:
    """The listening sockets of a server's needs, in their order; they stay open from process to process.

    Raises `OSError` where an address is taken, `BadRequest` where it is none."""
    for need, bound in server.spec.needs.items():
        if isinstance(bound, ListenBinding) and need not in server.sockets:
            server.sockets[need] = _listen(bound.listen)
    return list(server.sockets.values())


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        if not port.isdigit():
            return _listen_at(address)
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OverflowError, TypeError, ValueError):  # no number of a port, no name of a host, no path
        raise BadRequest(where="listen", expected="HOST:PORT", got=str(address)) from None


def _listen_at(path: str) -> socket.socket:
    """At a path, or an abstract address, which begins with a null and has no file."""
    end = socket.socket(socket.AF_UNIX)
    try:
        if not path.startswith("\0"):
            _forget_dead(path)
        end.bind(path)
        end.listen(128)
    except BaseException:
        end.close()
        raise
    return end


def _forget_dead(path: str) -> None:
    """Remove a socket on which nobody listens any more: whoever made it has ended, and its file would be in the way."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as look:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            look.setblocking(False)
            try:
                look.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
