"""The store of a simulated node: the real server of `state` over the in-memory model, which outlives its processes.

What a commit writes is there once the engine has taken it; who is killed before that has written nothing, who is killed
after it has written and told nobody.
"""

from __future__ import annotations

from typing import Any

from atoll.ipc.serve import Serves
from atoll.servers.state.engine import Batch, Broken, Engine, Full
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.opening import Settings
from atoll.servers.state.ownership import settle_format
from atoll.servers.state.server import Server

from .world import World

SLOWEST = 0.3
"""Seconds that a slow disk takes for one commit, at most."""


class Disk(MemoryEngine):
    """A medium that can be slow, full or broken."""

    def __init__(self, world: World) -> None:
        super().__init__(limit=1 << 26, reserve=1 << 20)
        self._world = world
        self._written: list[bytes] = []

    def holds(self, part: bytes) -> bool:
        """Whether any value that was ever written has this in it."""
        return any(part in value for value in self._written)

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
        self._written += [value for rows in batch.puts.values() for _, value in rows]
        world.note("committed", b"".join(key + value for rows in batch.puts.values() for key, value in rows))
        world.pass_point("committed")


def simulated(disk: Disk) -> type[Serves[Any]]:
    """The class of `state` that opens this disk."""

    class Store(Server):
        @staticmethod
        def open_engine(settings: Settings) -> tuple[Engine, str]:
            return disk, settle_format(disk)

    return Store
