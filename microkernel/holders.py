"""Who holds capabilities on keyspaces, and how each addresses them: those whose reads may go to a reader."""

from __future__ import annotations

import trio

from atoll.ipc.system.control import Port

from .capabilities import Capability
from .image_check import STORE, STORE_INTERFACE
from .node import Node
from .parties import Party

BACKUP = "backup"
READING = frozenset({"read", "history", BACKUP})
"""The rights under which is read."""


class Holders:
    """Filled by `authority`, which admits capabilities; read by `readers`, which spreads who holds them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.ports: dict[int, dict[int, Port]] = {}
        """By party and capability."""
        self._came = trio.Event()
        """Set when there is one more to spread while readers are there."""

    def admitted(self, capability: Capability, party: Party, port: Port) -> None:
        """A party was told of a capability: kept if it is one on a keyspace, or to copy all of them, where the image has
        readers."""
        node = self._node
        if capability.server != STORE or capability.interface != STORE_INTERFACE:
            return
        if party is node.kernel or not node.servers[STORE].spec.readers.most:
            return
        if capability.rights & (READING if capability.badge else {BACKUP}):
            self.ports.setdefault(party.number, {})[capability.id] = port
            if node.reading:
                self._came.set()

    async def come(self, within: float) -> bool:
        """Wait for one more to spread, so many seconds. Whether there is one."""
        with trio.move_on_after(within):
            await self._came.wait()
        came, self._came = self._came.is_set(), trio.Event()
        return came

    def spread_again(self) -> None:
        """All of them read at no reader now."""
        self._came.set()
