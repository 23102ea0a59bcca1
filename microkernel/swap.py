"""Swap: a new version, or another level, in a running server's place, with the same channels.

The new process starts beside the old one and says what it offers. The old one drains and hands over; the new one takes
over and starts up; then the row is committed, and only then may the new one take a call. Until that moment any failure
resumes the old process as if nothing had been; from then on a failure is a crash of the new version.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from atoll.ipc import schema
from atoll.ipc.errors import BadRequest, DrainTimedOut, Incompatible
from atoll.ipc.runtime.describe import Description
from atoll.ipc.system import control
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.kernel import StartFailed, Swapped, WrongState

from . import launching, needs
from .capability_rows import write_made
from .image import ConfigBinding
from .image_check import STORE
from .journal import StateServer
from .parties import Serving
from .processes import CannotConfine, ZygoteDied
from .protection import Plan
from .records import SwapRow
from .supervisor import Server
from .versions import Version

if TYPE_CHECKING:
    from .node import Node

HAND_OVER_WITHIN = 30.0
"""Seconds for the old process to give its state, once it has drained."""
OLD_ENDS_WITHIN = 5.0


class Swaps:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._sequence = 0

    async def swap(self, what: calls.Swap) -> Swapped:
        """See `Kernel.swap`."""
        server = self._node.server(what.server)
        async with server.changing:
            if server.serving is None or server.state != "serving":
                raise WrongState(server=server.name, state=server.state, wanted="serving")
            async with self._node.readers.aside(server):
                return await _Swap(self, self._node, server, what).run()

    def number(self) -> int:
        self._sequence += 1
        return self._sequence


class _Swap:
    """One swap in hand."""

    def __init__(self, swaps: Swaps, node: Node, server: Server, what: calls.Swap) -> None:
        self.swaps = swaps
        self.node = node
        self.server = server
        self.what = what
        assert server.serving is not None
        self.old: Serving = server.serving
        self.began = node.now()
        self.paused = 0
        self.ended: tuple[str, ...] = ()

    async def run(self) -> Swapped:
        node, server = self.node, self.server
        version = await self._version()
        level = self.what.level or server.spec.level
        description = await self._describe(version)
        spec = msgspec.structs.replace(
            server.spec, version=version.hash, package=version.package, level=level
        )
        before = server.spec, server.description
        server.spec, server.description = spec, description
        try:
            plan = node.syscalls.life.check_level(server, level, version)
            needs.complete(server)
            self._offer(description)
            new = await self._start(version, plan)
        except BaseException as error:
            server.spec, server.description = before
            self._record(version, level, done=False, sentence=str(error))
            raise
        try:
            handed_over = await self._hand_over(new)
            await self._commit(version, level)
        except BaseException as error:
            server.spec, server.description = before
            with trio.CancelScope(shield=True):
                await self._roll_back(new, str(error))
            self._record(version, level, done=False, sentence=str(error))
            raise
        return await self._switch(new, version, plan, handed_over)

    # before the old one is touched --------------------------------------------------------------------------

    async def _version(self) -> Version:
        what, node = self.what, self.node
        if what.package and what.version:
            raise BadRequest(where="swap", expected="a package or a version", got="both")
        if what.package:
            return await node.syscalls.life.version_of(Path(what.package))
        return node.versions.get(self.server.spec.package, what.version or self.server.version.hash)

    async def _describe(self, version: Version) -> Description:
        """What the new version says of itself; it must serve the interfaces there are."""
        server = self.server
        if version == server.version:
            return server.description
        configs = {
            need: bound.config
            for need, bound in server.spec.needs.items()
            if isinstance(bound, ConfigBinding)
        }
        described = await self.node.syscalls.life.describe(server.name, version, configs)
        old = self.node.authority.interfaces[server.name]
        new = [offer.name for offer in described.interfaces]
        if new[: len(old)] != old:
            raise Incompatible(
                server.name, (f"expected the interfaces {', '.join(old)}, got {', '.join(new)}",)
            )
        return described

    def _offer(self, description: Description) -> None:
        """Rights that the new version adds get bits of their own; none is ever moved or taken away."""
        node, server = self.node, self.server
        batch = node.store.batch(f"rights of {server.name}")
        node.authority.interfaces[server.name] = [offer.name for offer in description.interfaces]
        for offer in description.interfaces:
            now, before = node.tree.offer(server.name, offer.name, offer.rights)
            if now != before:
                write_made(batch, now)
        needs.bind(node, server, batch)
        if batch:
            node.store.later(batch)

    async def _start(self, version: Version, plan: Plan) -> Serving:
        """The new process, up to what it offers. Raises `StartFailed`, `Incompatible`; then it is gone."""
        node, server = self.node, self.server
        try:
            new = await launching.launch(node, server, version, plan, beside=True)
        except (CannotConfine, ZygoteDied, OSError) as error:
            raise StartFailed(server=server.name, step="process", reason=str(error)) from error
        offered = await node.supervisor.until_ready(server, new)
        try:
            self._check(offered)
        except BaseException:
            await self._end(new, "it is not compatible")
            raise
        return new

    def _check(self, offered: control.Ready) -> None:
        """Whoever uses the old version must be able to use the new one. Raises `Incompatible`."""
        found = {each.name: each for each in offered.interfaces}
        for expected in self.server.offered:
            new = found.get(expected.name)
            if new is None:
                raise Incompatible(expected.name, (f"expected interface {expected.name}, got none",))
            if new.fingerprint != expected.fingerprint:
                schema.check(schema.decode(bytes(expected.schema)), schema.decode(bytes(new.schema)))

    # hand-over ----------------------------------------------------------------------------------------------

    async def _hand_over(self, new: Serving) -> int:
        """The old process lets go, the new one takes over. Returns the bytes of state."""
        node, old, what = self.node, self.old, self.what
        old.drained = trio.Event()
        self.server.state = "draining"
        old.send(control.Drain(deadline=node.clock.monotonic() + int(what.deadline * 1e9)))
        self.paused = node.clock.monotonic()
        with trio.move_on_after(what.deadline + OLD_ENDS_WITHIN):
            await old.drained.wait()
        if old.gone or not old.drained.is_set():
            raise StartFailed(
                server=self.server.name, step="drain", reason="the old version ended or did not answer"
            )
        if old.pending and not what.force:
            raise DrainTimedOut(old.pending)
        self.ended = old.pending
        old.handed = trio.Event()
        old.send(control.HandOver())
        with trio.move_on_after(HAND_OVER_WITHIN):
            await old.handed.wait()
        if old.handed_over is None:
            reason = old.failed.sentence if old.failed is not None else "the old version gave no state"
            raise StartFailed(server=self.server.name, step="hand over", reason=reason)
        told, state = old.handed_over
        old.handed_over, old.retired = None, True
        try:
            new.send(control.TakeOver(size=told.size), (state,))
        finally:
            os.close(state)
        self.positions = told.positions
        offered = await node.supervisor.until_ready(self.server, new)
        self.server.offered = offered.interfaces
        return told.size

    async def _commit(self, version: Version, level: str) -> None:
        """What is to run from now on, as a row; for the store itself, in the journal."""
        node, server = self.node, self.server
        batch = node.store.batch(f"swap {server.name}")
        batch.put(server.spec.row(), self._row(version, level, done=True, sentence=""))
        if server.name == STORE:
            spec = server.spec
            node.store.journal.set_state(
                StateServer(
                    package=spec.package,
                    version=spec.version,
                    level=spec.level,
                    start=spec.start,
                    image=spec.image,
                    add=spec.add,
                    drop=tuple(spec.drop.items()),
                )
            )
            node.store.journal.wait(batch.changes())
            return
        await node.store.commit(batch.changes())

    # the two outcomes ---------------------------------------------------------------------------------------

    async def _switch(self, new: Serving, version: Version, plan: Plan, handed_over: int) -> Swapped:
        """The channels are the new process's; the old one ends. Up to `Resume` nothing is awaited: no deadline of the
        caller's can leave the channels with nobody."""
        node, server, old = self.node, self.server, self.old
        level_before, version_before = server.plan.level if server.plan else plan.level, server.version
        old.expected_end = f"swapped for {version.hash[:10]}"
        if self.ended:
            # What force leaves unanswered ends as after a crash: outcome unknown, and repeated where that is allowed.
            node.authority.server_died(old)
            self.positions = {}
        server.version, server.plan = version, plan
        for channel in node.channels.of_server(server.name):
            positions = self.positions.get(channel.number, ())
            lanes = channel.shape.lanes
            half = len(positions) // 2
            new.send(
                *channel.opening(as_client=False, positions=(*positions[:half][:3], *positions[half:][:3]))
            )
            assert lanes <= 3
        node.grants.hand_over(new, node.channels.of_server(server.name))
        node.supervisor.serves(server, new)
        new.send(control.Resume())
        pause = (node.clock.monotonic() - self.paused) / 1e9
        if server.name == STORE:
            await node.store.settle()
        within = 0.0 if self.ended else OLD_ENDS_WITHIN
        old.send(control.Stop(deadline=node.clock.monotonic() + int(within * 1e9)))
        with trio.move_on_after(within):
            await old.ended.wait()
        await self._end(old, old.expected_end)
        self._rebind(new)
        node.store.later(
            node.store.batch("swapped").put(
                node.supervisor.process_row(server, new), node.supervisor.protection_row(server)
            )
        )
        node.events.event("swap", server.name, f"{version_before.hash[:10]} ({level_before}) gave way to "
                          f"{version.hash[:10]} ({plan.level})")  # fmt: skip
        return Swapped(
            server=server.name, old=version_before.hash, new=version.hash, level=plan.level,  # type: ignore[arg-type]
            pause=pause, handed_over=handed_over, ended=list(self.ended),
        )  # fmt: skip

    def _rebind(self, new: Serving) -> None:
        """The lasting capabilities stand on the new process's channels from now on."""
        for held in self.node.tree.held_by(self.server.name):
            if held.lasting and held.parent:
                self.node.authority.enter(held, self.node.authority.connect(new, held.server))

    async def _roll_back(self, new: Serving, why: str) -> None:
        """The new process ends, the old one goes on as if nothing had been."""
        server, old = self.server, self.old
        await self._end(new, f"swap refused: {why}")
        if old.gone or server.serving is not old:
            return
        old.retired = False
        old.send(control.Resume())
        server.state = "serving"

    async def _end(self, serving: Serving, why: str) -> None:
        serving.expected_end = why
        if serving.process is not None and not serving.ended.is_set():
            serving.process.kill()
        await serving.ended.wait()

    # rows ---------------------------------------------------------------------------------------------------

    def _row(self, version: Version, level: str, *, done: bool, sentence: str) -> SwapRow:
        node, server = self.node, self.server
        return SwapRow(
            boot=node.boot, sequence=self.swaps.number(), server=server.name, old=server.version.hash,
            new=version.hash, old_level=server.plan.level if server.plan else "", new_level=level, began=self.began,
            ended=node.now(), done=done, sentence=sentence,
        )  # fmt: skip

    def _record(self, version: Version, level: str, *, done: bool, sentence: str) -> None:
        node = self.node
        row = self._row(version, level, done=done, sentence=sentence)
        node.store.later(node.store.batch("swap refused").put(row))
        node.events.event("swap refused", self.server.name, sentence)
