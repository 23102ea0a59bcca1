"""The kernel's endpoint: each system call, who makes it, and which part of the kernel answers it.

A caller is known by its channel, never by what it says. Plain handlers answer at once; those that change a process or a
row are tasks, so that the kernel's loop goes on meanwhile. What needs the store waits for it, up to the call's deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from atoll.ipc.buffer import BufferMode
from atoll.ipc.context import current
from atoll.ipc.errors import BadRequest
from atoll.ipc.serve import Serves
from atoll.ipc.system import records
from atoll.ipc.system.control import Described
from atoll.ipc.system.kernel import (
    AttachmentRow,
    BufferMade,
    BufferRow,
    CapabilityRow,
    ChannelRow,
    DeviceShare,
    Edge,
    Granted,
    Kernel,
    Load,
    LogRow,
    NodeRow,
    Opened,
    ProcessRow,
    Protection,
    PublishedTable,
    Refusal,
    Slice,
    Swap,
    Swapped,
    VersionRow,
)
from atoll.ipc.system.measurement import Measurement

from .allotments import Allotments
from .changes import load as load_rows
from .events import Events
from .grants import Grants
from .life import Life
from .logs import Logs
from .looking import Looking
from .node import Node
from .parties import Party
from .powers import LONGEST, Powers
from .swap import Swaps


class Syscalls(Serves[Kernel]):
    def __init__(
        self, node: Node, logs: Logs, events: Events, allotments: Allotments, grants: Grants, looking: Looking,
        life: Life, powers: Powers, swaps: Swaps,
    ) -> None:  # fmt: skip
        self._node = node
        self._logs = logs
        self._events = events
        self._allotments = allotments
        self._grants = grants
        self._looking = looking
        self._life = life
        self._powers = powers
        self._swaps = swaps

    def _caller(self) -> Party:
        return self._node.party_of(current().client)

    @staticmethod
    def _operator() -> bool:
        return "operate" in current().rights

    def _time(self, server: str, deadline: float | None) -> float:
        """Seconds for a server to finish what it has in hand. Raises `NotFound`, `BadRequest`."""
        if deadline is None:
            return self._node.server(server).spec.drain
        _hold_to_time(deadline)
        return deadline

    # what the node is ---------------------------------------------------------------------------------------

    @Kernel.node.serve
    def node(self) -> NodeRow:
        return self._looking.node()

    @Kernel.ps.serve
    def ps(self) -> list[ProcessRow]:
        return self._looking.ps()

    @Kernel.interfaces.serve
    def offered_interfaces(self, server: str) -> list[Described]:
        return self._looking.interfaces(self._node.server(server))

    @Kernel.protection.serve
    def protection(self, server: str) -> Protection:
        return self._looking.protection(self._node.server(server))

    @Kernel.graph.serve
    def graph(self) -> list[Edge]:
        return self._looking.graph()

    @Kernel.caps.serve
    def caps(self, server: str = "", after: int = 0) -> list[CapabilityRow]:
        return self._looking.caps(server, after)

    @Kernel.versions.serve
    async def versions(self, server: str = "") -> list[VersionRow]:
        return self._looking.versions(server, await load_rows(self._node.store, records.VersionRow))

    @Kernel.channels.serve
    def channels(self, server: str) -> list[ChannelRow]:
        return self._looking.channels(self._node.server(server).name)

    @Kernel.published.serve
    def published(self) -> list[PublishedTable]:
        return self._looking.published(self._powers.keyspaces(self._caller(), self._operator()))

    @Kernel.slice.serve
    def slice(self, server: str) -> Slice:
        return self._allotments.show(self._node.server(server))

    @Kernel.device_share.serve
    def device_share(self, channel: int) -> DeviceShare:
        return self._allotments.device_share(self._caller(), channel)

    @Kernel.measurement.serve
    def measurement(self, channel: int) -> Measurement:
        return self._looking.measurement(self._caller(), channel)

    @Kernel.attachments.serve
    def attachments(self, after: int = 0) -> list[AttachmentRow]:
        return self._looking.attachments(after)

    @Kernel.refused.serve
    def refused(self, server: str = "", after: int = 0) -> list[Refusal]:
        return self._events.refusals(server, after)

    @Kernel.logs.serve
    async def logs(self, after: int = 0, server: str = "", follow: bool = True) -> AsyncIterator[LogRow]:
        async for line in self._logs.follow(after, server, follow):
            yield line

    # a server's life ----------------------------------------------------------------------------------------

    @Kernel.load.serve
    async def load(self, what: Load) -> ProcessRow:
        return self._looking.process(await self._life.load(what))

    @Kernel.swap.serve
    async def swap(self, what: Swap) -> Swapped:
        return await self._swaps.swap(what, self._time(what.server, what.deadline))

    @Kernel.stop.serve
    async def stop_server(self, server: str, deadline: float | None = None) -> ProcessRow:
        found = self._node.server(server)
        await self._life.stop(found, self._time(server, deadline))
        return self._looking.process(found)

    @Kernel.restart.serve
    async def restart(self, server: str, deadline: float | None = None) -> ProcessRow:
        found = self._node.server(server)
        await self._life.restart(found, self._time(server, deadline))
        return self._looking.process(found)

    @Kernel.freeze.serve
    async def freeze(self, server: str, reason: str = "") -> ProcessRow:
        found = self._node.server(server)
        await self._life.freeze(found, reason)
        return self._looking.process(found)

    @Kernel.thaw.serve
    async def thaw(self, server: str) -> ProcessRow:
        found = self._node.server(server)
        await self._life.thaw(found)
        return self._looking.process(found)

    @Kernel.set_slice.serve
    async def set_slice(self, server: str, slice: Slice) -> Slice:
        return await self._allotments.set(self._node.server(server), slice, self._caller())

    @Kernel.shutdown.serve
    def shutdown(self, deadline: float = 5.0) -> None:
        _hold_to_time(deadline)
        self._node.end_soon(deadline)

    # capabilities -------------------------------------------------------------------------------------------

    @Kernel.open.serve
    async def open(self, server: str, interface: str = "", rights: list[str] | None = None) -> Opened:
        return await self._powers.open(self._caller(), server, interface, rights)

    @Kernel.keyspace.serve
    async def keyspace(self, name: str, rights: list[str] | None = None) -> Granted:
        return await self._powers.keyspace(self._caller(), name, rights)

    @Kernel.keyspaces.serve
    def keyspaces(self) -> list[str]:
        return self._powers.keyspaces(self._caller(), self._operator())

    @Kernel.number.serve
    def number(self, channel: int, slot: int, generation: int) -> int:
        return self._powers.number(self._caller(), channel, slot, generation)

    @Kernel.own.serve
    def own(self, interface: str) -> int:
        return self._powers.own(self._caller(), interface)

    @Kernel.derive.serve
    def derive(self, capability: int, rights: list[str] | None = None, expires: float = 0.0) -> int:
        return self._powers.derive(self._caller(), capability, rights, expires)

    @Kernel.mint.serve
    def mint(self, capability: int, badge: int, rights: list[str] | None = None, expires: float = 0.0) -> int:
        return self._powers.mint(self._caller(), self._operator(), capability, badge, rights, expires)

    @Kernel.grant.serve
    async def grant(
        self,
        capability: int,
        to: str,
        rights: list[str] | None = None,
        expires: float = 0.0,
        lasting: bool = True,
    ) -> int:
        return await self._powers.grant(capability, to, rights, expires, lasting)

    @Kernel.transfer.serve
    async def transfer(self, capability: int, channel: int) -> int:
        return await self._powers.transfer(self._caller(), capability, channel)

    @Kernel.revoke.serve
    async def revoke(self, capability: int, cancel: bool = False) -> int:
        return await self._powers.revoke(self._caller(), self._operator(), capability, cancel)

    # buffers ------------------------------------------------------------------------------------------------

    @Kernel.buffer.serve
    async def buffer(
        self, size: int, mode: BufferMode = "writable", of_server: bool = False, note: bytes = b""
    ) -> BufferMade:
        return await self._grants.make(self._caller(), size, mode, of_server, note)

    @Kernel.buffer_seal.serve
    async def buffer_seal(self, buffer: int) -> BufferMade:
        return await self._grants.seal(self._caller(), buffer)

    @Kernel.buffer_share.serve
    async def buffer_share(self, buffer: int, channel: int, mode: BufferMode = "readonly") -> int:
        return await self._grants.share(self._caller(), buffer, channel, mode)

    @Kernel.buffer_unshare.serve
    async def buffer_unshare(self, buffer: int, channel: int) -> bool:
        return await self._grants.unshare(self._caller(), buffer, channel)

    @Kernel.buffer_map.serve
    async def buffer_map(self, buffer: int, channel: int = 0) -> None:
        await self._grants.hand_again(self._caller(), buffer, channel)

    @Kernel.buffers.serve
    def buffers(self, after: int | None = None) -> list[BufferRow]:
        return self._grants.rows(self._caller(), after)

    @Kernel.buffer_revoke.serve
    async def buffer_revoke(self, buffer: int) -> int:
        return await self._grants.revoke(self._caller(), buffer)

    @Kernel.buffer_release.serve
    async def buffer_release(self, buffer: int) -> None:
        await self._grants.release(self._caller(), buffer)


def _hold_to_time(deadline: float) -> None:
    """Before anything is begun: a process cannot be told of a time that is none, and half a stop is the worst of all. Raises
    `BadRequest`."""
    if not 0 <= deadline <= LONGEST:  # also where it is no number
        raise BadRequest(where="deadline", expected=f"seconds up to {LONGEST:.0f}", got=str(deadline))
