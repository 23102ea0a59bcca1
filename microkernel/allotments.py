"""What servers may use: the image's slices, and what a person set for one server beneath its slice.

Control groups, I/O classes and the gpu server's leases hold them to it. Each is a row (`slice NAME`, `server NAME`),
whose history is the record of who had what when. The rule of `plan` is that of all rows: what a person set for a server
of the image ends with the boot, and what they set for a server that a person loaded stays.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec
import trio

from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.records import SliceRow

from . import image
from .events import Events
from .image_check import STORE
from .image_read import keys_of
from .node import Node
from .parties import Party, Serving
from .plan import limits_of, own_slice
from .server import Server
from .slices import GroupFailed, Limits, io

OTHERWISE_CALLED = {"pids": "processes"}
"""What a slice of an image calls otherwise than `set_slice` does."""


def of_image(spec: image.SliceSpec) -> Limits:
    return msgspec.convert(limits_of(spec), Limits)


def of_row(row: SliceRow) -> Limits:
    return msgspec.convert(row.limits, Limits)


class Allotments:
    def __init__(self, node: Node, events: Events) -> None:
        self._node = node
        self._events = events

    def of_slice(self, server: Server) -> Limits | None:
        """The limits of the slice that a server is in; None: it is in none."""
        spec = self._node.image.slice.get(server.spec.slice)
        return None if spec is None else of_image(spec)

    def of(self, server: Server, *, reader: bool = False) -> Limits:
        """What holds for a server: what a person set, else its slice. `reader`: for the store's readers."""
        apart = self._node.image.slice.get(server.spec.readers.slice) if reader else None
        if apart is not None:
            return of_image(apart)
        return server.own or self.of_slice(server) or Limits()

    def restore(self, server: Server, own: Limits | None) -> None:
        """At boot, before it starts: its slice's group, and what its row keeps of its own."""
        limits = self.of_slice(server)
        said = [] if limits is None else self._node.slices.group(server.spec.slice).limit(limits)
        if server.spec.readers.slice:
            apart = self._node.slices.group(server.spec.readers.slice)
            said += apart.limit(self.of(server, reader=True))
        server.own = own
        if own is not None:
            said += self._node.group(server).limit(own)
        server.unenforced = tuple(said) + _not_here(self.of(server))

    def show(self, server: Server) -> calls.Slice:
        """What a server may use."""
        limits = self.of(server)
        return calls.Slice(
            cpu_weight=limits.cpu_weight, cpu_quota=limits.cpu_quota, memory=limits.memory,
            io_class=limits.io_class, io_weight=limits.io_weight, device_memory=limits.device_memory,
            device_time=limits.device_time, processes=limits.pids, priority=limits.priority,
            unenforced=list(server.unenforced),
        )  # fmt: skip

    async def set(self, server: Server, wanted: calls.Slice, by: Party) -> calls.Slice:
        """Change what a server may use, beneath its slice; the row and the effect, or neither. Raises
        `GroupFailed`, `NotFound`."""
        node = self._node
        _check(wanted)
        limits = Limits(
            cpu_weight=wanted.cpu_weight, cpu_quota=wanted.cpu_quota, memory=wanted.memory, pids=wanted.processes,
            io_class=wanted.io_class, io_weight=wanted.io_weight, device_memory=wanted.device_memory,
            device_time=wanted.device_time, priority=wanted.priority,
        )  # fmt: skip
        async with node.changing(server):
            before = server.own, server.unenforced
            try:
                said = self._apply(server, limits, limits)
                server.own, server.unenforced = limits, said
                row = SliceRow(
                    slice=own_slice(server.name),
                    limits=msgspec.structs.asdict(limits),
                    unenforced=said,
                    by=by.holder,
                )
                changes = node.store.batch(f"set_slice {server.name}").put(row).changes()
                if server.name == STORE:
                    # Its restart waits for this, so this cannot wait for it. Seen through, as what `commit` has sent.
                    with trio.CancelScope(shield=True):
                        await node.store.commit_or_keep(changes)
                else:
                    await node.store.commit(changes)
            except BaseException as error:
                server.own, server.unenforced = before
                with suppress(OSError):  # what could not be set as a whole may not be put back as a whole
                    self._apply(server, server.own or Limits(), self.of(server))
                if isinstance(error, OSError):
                    raise GroupFailed(server.name, "held to these limits", error.strerror or "") from error
                raise
        for sentence in said:
            self._events.event("slice", server.name, sentence)
        return self.show(server)

    def _apply(self, server: Server, limits: Limits, of_threads: Limits) -> tuple[str, ...]:
        """`limits` to its own control group; to its threads, which no group holds to an I/O class, `of_threads`."""
        group = self._node.group(server)
        said = tuple(group.limit(limits))
        io.apply(group.members(), of_threads)
        return said + _not_here(limits)

    def device_share(self, party: Party, channel: int) -> calls.DeviceShare:
        """What the client of a channel that `party` serves may have of devices. Raises `NotFound`."""
        found = self._node.channels.get(channel)
        if found is None or found.server != party.holder:
            raise NotFound(what="channel that you serve", name=str(channel))
        if not isinstance(found.client, Serving):
            return calls.DeviceShare()
        server = self._node.server(found.client.holder)
        held = [(f"slice {server.spec.slice}", self.of_slice(server)), (own_slice(server.name), server.own)]
        return calls.DeviceShare(
            bounds=[
                calls.DeviceBound(name=name, memory=limits.device_memory, time=limits.device_time)
                for name, limits in held
                if limits is not None
            ],
            priority=self.of(server).priority,
        )


def _not_here(limits: Limits) -> tuple[str, ...]:
    """What no host holds anybody to, and what this one does not, beside control groups."""
    said = [refused] if (refused := io.refused(limits)) else []
    if limits.device_time is not None:
        said.append("device_time is written into leases, and nothing here holds a program to it")
    return tuple(said)


def _check(wanted: calls.Slice) -> None:
    """The bounds are those of an image's slice. Raises `BadRequest`."""
    for key, (_, about, _) in keys_of(image.SliceSpec).items():
        if about.ge is None or about.le is None:
            continue
        name = OTHERWISE_CALLED.get(key, key)
        value = getattr(wanted, name)
        if value is not None and not about.ge <= value <= about.le:
            expected = f"{about.ge:g} to {about.le:g}"
            raise BadRequest(where=f"set_slice: {name}", expected=expected, got=f"{value:g}")
