"""What a server is to be: one form for what an image says and for what a person loads."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from atoll.ipc.system import kernel as calls
from atoll.ipc.system.records import ServerRow

from . import image
from .image import Binding, Image, Readers, Restart
from .versions import Version


class Spec(Struct, frozen=True, kw_only=True):
    name: str
    package: str
    version: str
    level: str
    start: str
    needs: dict[str, Binding]
    add: tuple[str, ...] = ()
    drop: dict[str, str] = {}
    grants: tuple[str, ...] = ()
    """Groups of system calls beyond the usual ones."""
    refusal: str = "notify"
    slice: str = ""
    account: str = ""
    service: image.Service = "normal"
    watchdog: float = 30.0
    drain: float = 10.0
    restart: Restart = Restart()
    readers: Readers = Readers()
    degrade: bool = False
    image: str = ""
    load: bytes = b""
    stopped: bool = False

    def row(self) -> ServerRow:
        return ServerRow(
            server=self.name, package=self.package, version=self.version, level=self.level, image=self.image,
            stopped=self.stopped, add=self.add, drop=tuple(self.drop.items()), slice=self.slice,
            account=self.account, start=self.start, load=self.load,
        )  # fmt: skip


def from_image(described: Image, row: ServerRow, degrade: bool) -> Spec:
    """A server that the image names; `row` is what the boot's plan made of it."""
    server = described.server[row.server]
    return Spec(
        name=row.server, package=row.package, version=row.version, level=row.level,
        start=row.start, needs=dict(server.needs), add=row.add, drop=dict(row.drop),
        grants=tuple(allow.calls for allow in server.allow), refusal=server.refuse, slice=row.slice,
        account=row.account, service=server.service, watchdog=float(server.watchdog), drain=float(server.drain),
        restart=server.restart, readers=server.readers, degrade=degrade, image=row.image, stopped=row.stopped,
    )  # fmt: skip


def from_load(load: calls.Load, version: Version, account: str) -> Spec:
    """A server that a person loads."""
    return Spec(
        name=load.server, package=version.package, version=version.hash, level=load.level, start=load.start,
        needs={need: _bound(bound) for need, bound in load.needs.items()}, account=load.account or account,
        degrade=load.degrade, load=msgspec.msgpack.encode(load),
    )  # fmt: skip


def from_row(row: ServerRow) -> Spec:
    """A server that a person loaded on an earlier boot."""
    load = msgspec.msgpack.decode(row.load, type=calls.Load)
    return Spec(
        name=row.server, package=row.package, version=row.version, level=row.level, start=row.start,
        needs={need: _bound(bound) for need, bound in load.needs.items()}, add=row.add, drop=dict(row.drop),
        account=row.account, slice=row.slice, degrade=load.degrade, load=row.load, stopped=row.stopped,
    )  # fmt: skip


def _bound(bound: calls.Binding) -> Binding:
    match bound:
        case calls.KeyspaceBinding():
            rights = tuple(bound.rights) or image.KEYSPACE_RIGHTS
            return image.KeyspaceBinding(keyspace=bound.keyspace, rights=rights)
        case calls.ServerBinding():
            return image.ServerBinding(server=bound.server, rights=tuple(bound.rights))
        case calls.ConfigBinding():
            table: Mapping[str, object] = msgspec.msgpack.decode(bound.value, type=dict[str, object])
            return image.ConfigBinding(config=dict(table))
        case calls.SocketBinding():
            return image.ListenBinding(listen=image.Address(bound.listen))
