"""What a server is to be: one form for what an image says and for what a person loads."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from atoll.ipc.errors import BadRequest, DecodeFaults
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.calls import SAMPLE, SIZE, keyspace_of
from atoll.ipc.system.control import CALLS, Recording
from atoll.ipc.system.records import ServerRow

from . import image
from .image import Binding, Image, KeyspaceBinding, Readers, Restart
from .versions import Version

Audit = Literal["none", "sample", "full"]


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
    record: bool = False
    audit: Audit = "none"

    @property
    def recording(self) -> Recording | None:
        """How its processes' calls are recorded; None: they are not."""
        if CALLS not in self.needs:
            return None
        return Recording(
            size=SIZE, payloads=self.record, every=SAMPLE if self.audit == "sample" else 1, full=self.audit == "full",
            keyspaces={
                need: bound.keyspace
                for need, bound in self.needs.items()
                if isinstance(bound, KeyspaceBinding) and need != CALLS
            },
        )  # fmt: skip

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
        start=row.start, needs=server.needs | _calls(row.server, server.record, server.audit), add=row.add,
        drop=dict(row.drop),
        grants=tuple(allow.calls for allow in server.allow), refusal=server.refuse, slice=row.slice,
        account=row.account, service=server.service, watchdog=float(server.watchdog), drain=float(server.drain),
        restart=server.restart, readers=server.readers, degrade=degrade, image=row.image, stopped=row.stopped,
        record=server.record, audit=server.audit,
    )  # fmt: skip


def from_load(load: calls.Load, version: Version, account: str) -> Spec:
    """A server that a person loads."""
    return Spec(
        name=load.server, package=version.package, version=version.hash, level=load.level, start=load.start,
        needs=_needs(load), account=load.account or account, record=load.record,
        degrade=load.degrade, load=msgspec.msgpack.encode(load),
    )  # fmt: skip


def from_row(row: ServerRow) -> Spec:
    """A server that a person loaded on an earlier boot."""
    load = msgspec.msgpack.decode(row.load, type=calls.Load)
    return Spec(
        name=row.server, package=row.package, version=row.version, level=row.level, start=row.start,
        needs=_needs(load), record=load.record, add=row.add, drop=dict(row.drop),
        account=row.account, slice=row.slice, degrade=load.degrade, load=row.load, stopped=row.stopped,
    )  # fmt: skip


def _calls(server: str, record: bool, audit: Audit) -> dict[str, Binding]:
    """The need of a server whose calls are recorded."""
    if not record and audit == "none":
        return {}
    return {CALLS: KeyspaceBinding(keyspace=keyspace_of(server), rights=("append",))}


def _needs(load: calls.Load) -> dict[str, Binding]:
    needs = {need: _bound(bound) for need, bound in load.needs.items()}
    return needs | _calls(load.server, load.record, "none")


def _bound(bound: calls.Binding) -> Binding:
    match bound:
        case calls.KeyspaceBinding():
            rights = tuple(bound.rights) or image.KEYSPACE_RIGHTS
            return KeyspaceBinding(keyspace=bound.keyspace, rights=rights)
        case calls.ServerBinding():
            return image.ServerBinding(server=bound.server, rights=tuple(bound.rights))
        case calls.ConfigBinding():
            return image.ConfigBinding(config=_table(bound.value))
        case calls.SocketBinding():
            return image.ListenBinding(listen=image.Address(bound.listen))


def _table(given: msgspec.Raw) -> dict[str, Any]:
    """A configuration. Raises `BadRequest` for what is none."""
    try:
        return msgspec.msgpack.decode(given, type=dict[str, Any])
    except DecodeFaults as error:
        raise BadRequest(where="load: config", expected="a table in MessagePack", got=str(error)) from None
