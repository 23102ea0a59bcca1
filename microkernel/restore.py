"""What a boot finds in the store and what it makes of it: servers, keyspaces, the capability tree, the rows of this boot."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from atoll.ipc.errors import AtollError, NotFound
from atoll.ipc.runtime.describe import Description
from atoll.ipc.system.kernel import written
from atoll.ipc.system.records import (
    AccountRow,
    BootRow,
    CapabilityRow,
    ConfigurationRow,
    ImageRow,
    KeyspaceRow,
    NeedRow,
    ServerRow,
    SliceRow,
    VersionRow,
)
from atoll.ipc.system.state import Retention

from . import intents, needs, plan
from .accounts import CHANNEL
from .allotments import Allotments, of_row
from .authority import RIGHTS, Authority
from .capabilities import Tree
from .capability_rows import capability_of, write_ended, write_made
from .changes import Batch, load
from .configurations import configurations, write_change
from .descriptions import describe_all
from .image_check import STORE, STORE_INTERFACE
from .launching import kernel_capability
from .needs import Needs
from .node import Node
from .parties import KERNEL
from .server import Server
from .specs import Spec, from_image, from_row
from .versions import Version


def hash_of_text(text: str) -> str:
    """The hash by which rows name an image."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Restore:
    """One boot's reading of the rows. `versions`: by server of the image, the package as copied at this boot."""

    def __init__(
        self, node: Node, allotments: Allotments, authority: Authority, needs: Needs,
        versions: dict[str, Version], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._node = node
        self._allotments = allotments
        self._authority = authority
        self._needs = needs
        self._checked = node.checked
        self._versions = versions
        self._say = say
        self._described: dict[str, Description] = {}
        """Of servers that the image does not name."""
        self._own: dict[str, SliceRow] = {}
        """By server what a person set for it to use, as the plan keeps it."""

    def row(self, name: str) -> ServerRow:
        """The image's row of a server."""
        rows = plan.wanted_servers(self._checked.image, hash_of_text(self._checked.text), self._versions)
        return next(row for row in rows if row.server == name)

    def server(self, spec: Spec) -> Server:
        node = self._node
        description = self._checked.descriptions.get(spec.name) or self._described[spec.name]
        version = node.versions.get(spec.package, spec.version)
        server = node.servers[spec.name] = Server(spec, description, version)
        self._authority.interfaces[spec.name] = [offer.name for offer in description.interfaces]
        row = self._own.get(spec.name)
        self._allotments.restore(server, None if row is None else of_row(row))
        return server

    def offer(self, server: Server) -> None:
        node = self._node
        for offer in server.description.interfaces:
            node.tree.offer(server.name, offer.name, offer.rights)

    async def planned(self) -> tuple[plan.Known, plan.BootPlan]:
        """What the store knows, and what this boot makes of it. Changes nothing."""
        store = self._node.store
        known = plan.Known(
            servers=tuple(await load(store, ServerRow)),
            slices=tuple(await load(store, SliceRow)),
            accounts=tuple(await load(store, AccountRow)),
            keyspaces=tuple(await load(store, KeyspaceRow)),
            needs=tuple(await load(store, NeedRow)),
        )
        return known, plan.plan(self._checked.image, hash_of_text(self._checked.text), self._versions, known)

    async def rows(self, batch: Batch) -> None:
        """Make the node what image and rows say; the rows of this boot go into the batch."""
        node = self._node
        await intents.settle_left(node.store, node.boot, batch)
        known, made = await self.planned()
        for step in made.steps:
            self._say(f"  {step}")
        self._own = made.own
        loaded = [row for row in made.servers if row.server not in self._checked.image.server]
        await self._describe_loaded(loaded)
        for row in made.servers:
            image = row.server in self._checked.image.server
            spec = from_image(self._checked.image, row, node.place.degrade) if image else from_row(row)
            if row.server == STORE:
                node.servers[STORE].spec = spec
            elif row.server in self._checked.descriptions or row.server in self._described:
                self.server(spec)
        await self._keyspaces(batch, known)
        await self._capabilities(batch, known, made)
        for row in made.servers:
            batch.put(row)
        for name in made.retired:
            batch.delete(ServerRow, name)
        await self._configurations(batch, made.retired)
        for over in made.over:
            batch.delete_row(over)
        self._put_boot(batch)

    async def _configurations(self, batch: Batch, retired: list[str]) -> None:
        """What servers are configured with now. That of one which is left out of this boot stays, as its row does."""
        node = self._node
        now = [
            row for server in node.servers.values() for row in configurations(server.spec, server.description)
        ]
        concerned = {*node.servers, *retired}
        before = [row for row in await load(node.store, ConfigurationRow) if row.server in concerned]
        write_change(batch, before, now)

    async def _describe_loaded(self, rows: list[ServerRow]) -> None:
        node = self._node
        packages = {}
        for row in rows:
            try:
                packages[row.server] = node.versions.get(row.package, row.version).folder / row.package
            except NotFound as error:
                self._left_out(row.server, str(error))
        found = await describe_all(node.forge, node.abilities, packages, {})
        for name, described in found.items():
            if isinstance(described, str):
                self._left_out(name, described)
            else:
                self._described[name] = described

    def _left_out(self, name: str, why: str) -> None:
        """A server that a person loaded cannot be there on this boot; its row stays, for one on which it can."""
        self._node.servers.pop(name, None)
        self._authority.interfaces.pop(name, None)
        self._say(f"server {name} is left out: {why}")

    async def _keyspaces(self, batch: Batch, known: plan.Known) -> None:
        node = self._node
        wanted = {row.keyspace: Retention(row.retention, row.versions) for row in known.keyspaces}
        for name, spec in self._checked.image.keyspace.items():
            wanted[name] = Retention(None if spec.retention is None else float(spec.retention), spec.versions)
        for server in list(node.servers.values()):
            if server.spec.load:
                try:
                    needs.complete(server)
                    needs.as_private(server, node.image.keyspace)
                    needs.undisclosed(server, node.servers.values())
                except AtollError as error:
                    self._left_out(server.name, str(error))
                    continue
            for name in needs.keyspaces_of(server):
                wanted.setdefault(name, needs.retention_of(name))
        for name, retention in wanted.items():
            badge = node.keyspaces[name] = await node.store.state.make_keyspace(name, retention)
            batch.put(
                KeyspaceRow(keyspace=name, badge=badge, retention=retention.age, versions=retention.versions)
            )

    async def _capabilities(self, batch: Batch, known: plan.Known, made: plan.BootPlan) -> None:
        """The tree of the last boot, and then what this image wants of it."""
        node = self._node
        store = node.store
        node.ledger.begin_anew()
        for channel in node.channels:
            node.ledger.charge_all(channel.client.account, CHANNEL, past_limit=True)
        for party in node.parties.values():
            node.ledger.charge_all(party.account, party.cost, past_limit=True)
        orders = {
            offer.name: node.tree.rights_map(STORE, offer.name)
            for offer in node.servers[STORE].description.interfaces
        }
        tree = node.tree = Tree(node.boot, node.ledger)
        self._authority.services.clear()  # numbers of the first tree: here they are others'
        for name, rights in orders.items():
            tree.fix_order(STORE, name, rights)
        rows = [capability_of(row) for row in await load(store, CapabilityRow)]
        for gone in tree.restore(rows):
            batch.delete(CapabilityRow, gone.id)
        node.bound = {(row.server, row.need): row.capability for row in known.needs}
        write_made(batch, tree.offer(KERNEL, "Kernel", RIGHTS)[0])
        for server in node.servers.values():
            for offer in server.description.interfaces:
                write_made(batch, tree.offer(server.name, offer.name, offer.rights)[0])
        for name in made.retired:
            write_ended(batch, tree.withdraw(name))
            write_ended(batch, tree.forget(name))
        for row in made.unneeded:
            del node.bound[row.server, row.need]
            batch.delete_row(row)
        self._needs.drop((row.capability for row in made.unneeded), batch)
        self._rejoin()
        there = 0
        # Who was bound before a server that it needs was left out is so, too.
        while there != len(node.servers):
            there = len(node.servers)
            self._bind_all(batch)
        for held in tree:
            if held.holder in node.servers and held.parent and not self._authority.offered(held):
                self._say(
                    f"  {held.holder} is not given capability {written(held.id)}: no {held.server} offers {held.interface}"
                )

    def _bind_all(self, batch: Batch) -> None:
        """The needs of all servers; one that a person loaded, and whose needs cannot be bound, is left out."""
        node = self._node
        for server in list(node.servers.values()):
            for need in needs.lost(node, server):
                self._say(f"  new capability for {server.name}.{need}: the last one was revoked")
            try:
                self._needs.drop(self._needs.bind(server, batch), batch)
            except AtollError as error:
                if not server.spec.load:
                    raise
                self._left_out(server.name, str(error))

    def _rejoin(self) -> None:
        """Those who run already, `state` and the kernel, get their capabilities of the real tree."""
        node = self._node
        root = node.tree.root(STORE, STORE_INTERFACE)
        ours = node.tree.grant(root.id, by=STORE, to=KERNEL, rights=root.rights)
        node.store.reopen(self._authority.state_proxy(ours))
        serving = node.serving(STORE)
        assert serving is not None
        serving.session.clear()  # numbers of the first tree: here they are others'
        # The first capability on the kernel's interface in either tree: so `state` goes on with the port it has.
        kept = kernel_capability(node, node.servers[STORE], serving)
        self._authority.admit(kept, serving)

    def _put_boot(self, batch: Batch) -> None:
        node = self._node
        image = self._checked.image
        node.row = BootRow(
            epoch=node.boot,
            node=node.place.name,
            started=node.started,
            image=hash_of_text(self._checked.text),
            kernel=os.uname().release,
            weakenings=tuple(f"{server}: {what}: {reason}" for server, what, reason in node.weakenings),
        )
        batch.put(
            node.row,
            ImageRow(
                hash=hash_of_text(self._checked.text),
                name=image.image.name,
                file=self._checked.file,
                text=self._checked.text,
            ),
        )
        for name, account in image.account.items():
            batch.put(AccountRow(account=name, limits=plan.limits_of(account)))
        for name, spec in image.slice.items():
            batch.put(SliceRow(slice=name, limits=plan.limits_of(spec)))
        for name, version in self._versions.items():
            interfaces = tuple(offer.name for offer in self._checked.descriptions[name].interfaces)
            batch.put(
                VersionRow(
                    package=version.package,
                    hash=version.hash,
                    added=node.started,
                    source=str(self._checked.packages[name]),
                    interfaces=interfaces,
                )
            )
