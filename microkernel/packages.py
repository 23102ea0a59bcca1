"""A package that somebody wants run in the place of a server: copied, asked what it is, held to a protection level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atoll.ipc.errors import BadRequest
from atoll.ipc.naming import nearest
from atoll.ipc.runtime.describe import Description
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.records import VersionRow

from .descriptions import describe_all
from .events import SENTENCE_MOST
from .image import ConfigBinding
from .launching import Launching
from .node import Node
from .protection import Plan, levels
from .protection.plan import Unprotected
from .server import Server
from .specs import Spec
from .versions import Version


class Packages:
    def __init__(self, node: Node, launching: Launching) -> None:
        self._node = node
        self._launching = launching

    async def version_of(self, server: str, package: Path) -> Version:
        """The package's version, copied into the node's folder for a server. Raises `NotFound`, `BadRequest`,
        `StartFailed` where the host cannot."""
        if not package.is_absolute() or "\0" in str(package):
            raise BadRequest(where="package", expected="an absolute path", got=repr(str(package)))
        with _by_the_host(server, "copy"):
            return await self._node.threads.run(partial(self._node.versions.add, package))

    async def describe(self, spec: Spec, version: Version) -> Description:
        """What a version says of itself, beside the configuration that a server's spec has for it. Raises `StartFailed`
        for one that cannot be imported."""
        name, package = spec.name, version.folder / version.package
        configs = {
            need: bound.config for need, bound in spec.needs.items() if isinstance(bound, ConfigBinding)
        }
        found = await describe_all(self._node.forge, self._node.abilities, {name: package}, {name: configs})
        described = found[name]
        if isinstance(described, str):
            raise calls.StartFailed(server=name, step="import", reason=described[:SENTENCE_MOST])
        with _by_the_host(name, "copy"):
            self._node.versions.keep(version, described)
        return described

    def check_level(self, server: Server, level: str, version: Version) -> Plan:
        """The protection plan. Raises `BadRequest` for a level that there is not, `MechanismMissing` where this host cannot
        keep it, `StartFailed` where it cannot give the server its user or its folders."""
        if level not in levels():
            near = nearest(level, levels())
            hint = f", did you mean {near!r}?" if near else ""
            raise BadRequest(where="level", expected=f"one of {', '.join(levels())}", got=f"{level!r}{hint}")
        with _by_the_host(server.name, "process"):
            plan = self._launching.protection(server, level, version)
        try:
            plan.require()
        except Unprotected:
            missing = plan.missing[0]
            raise calls.MechanismMissing(
                server=server.name, level=level, mechanism=missing.mechanism, reason=missing.reason
            ) from None
        return plan

    def version_row(self, version: Version, source: str, description: Description) -> VersionRow:
        return VersionRow(
            package=version.package, hash=version.hash, added=self._node.now(), source=source,
            interfaces=tuple(offer.name for offer in description.interfaces),
        )  # fmt: skip


@contextmanager
def _by_the_host(server: str, step: str) -> Iterator[None]:
    """What a step asks of the host may be refused: no room, no user id left. That is no bug."""
    try:
        yield
    except OSError as error:
        raise calls.StartFailed(server=server, step=step, reason=str(error)) from error
