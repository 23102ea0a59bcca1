"""The store of a simulated node: the real server of `state` over the in-memory model, which outlives its processes.

What a commit writes is there once the engine has taken it; who is killed before that has written nothing, who is killed
after it has written and told nobody.
"""

from __future__ import annotations

from typing import Any

from atoll.ipc.serve import Serves
from atoll.ipc.system.records import KEYSPACE, AnyRow, after, decode
from atoll.ipc.system.state import absolute
from atoll.servers.state import layout
from atoll.servers.state.engine import Batch, Broken, Engine, Full
from atoll.servers.state.keyspaces import Keyspaces
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.opening import Settings
from atoll.servers.state.ownership import settle_format
from atoll.servers.state.server import Server
from atoll.servers.state.versions import forward

from .world import World

SLOWEST = 0.3
"""Seconds that a slow disk takes for one commit, at most."""


class Disk(MemoryEngine):
    """A medium that can be slow, full or broken."""

    def __init__(self, world: World) -> None:
        super().__init__(limit=1 << 26, reserve=1 << 20)
        self._world = world

    def rows(self, table: type[AnyRow]) -> list[AnyRow]:
        """The kernel's rows of a table, as they are now."""
        number = Keyspaces(self).by_name().get(KEYSPACE)
        if number is None:
            return []
        start, end = absolute(number, table.key_of()), absolute(number, after(table.key_of()))
        with self.snapshot() as snapshot:
            found = forward(snapshot, start, end, layout.LAST)
            values = [layout.value_of(snapshot, row, stored) for row, stored in found]
        return [decode(table, value) for value in values if value is not None]

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        world = self._world
        world.pass_point("commit")
        faults, chance = world.faults, world.chance
        if chance.random() < faults.slow_disk:
            world.halt(chance.uniform(0.0, SLOWEST))
        if not reserved and chance.random() < faults.full_disk:
            world.note("full")
            raise Full("the disk is full", 1, 1)
        if chance.random() < faults.failing_disk:
            world.note("broken")
            raise Broken("fsync: Input/output error")
        super().commit(batch, reserved=reserved)
        world.note("committed", b"".join(key + value for rows in batch.puts.values() for key, value in rows))
        world.pass_point("committed")


def simulated(disk: Disk) -> type[Serves[Any]]:
    """The class of `state` that opens this disk."""

    class Store(Server):
        @staticmethod
        def open_engine(settings: Settings) -> tuple[Engine, str]:
            return disk, settle_format(disk)

    return Store
