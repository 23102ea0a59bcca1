"""A server's life: brought up, watched, restarted after a crash with growing waits, stopped, frozen."""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from atoll.ipc.errors import AtollError, PeerMisbehaved
from atoll.ipc.runtime.describe import Description
from atoll.ipc.system import control
from atoll.ipc.system.kernel import StartFailed, State

from . import launching, needs
from .image_check import STORE
from .parties import Serving
from .processes import CannotConfine, Exit, ZygoteDied
from .protection import Plan
from .protection.process import SHARED_UID
from .records import CrashRow, ProcessRow, ProtectionRow
from .slices import Group, Limits
from .specs import Spec
from .versions import Version

if TYPE_CHECKING:
    from .node import Node

READY_WITHIN = 60.0
"""Seconds for a process to import its package and get through `start()`."""
LAST_WORDS_WITHIN = 0.2
"""Seconds to hear what a process said before it ended, where something else still holds its end."""
KILL_AFTER = 1.0
"""Seconds beyond a stop's deadline until a process is killed."""


class Server:
    """A server of the node, with or without a process."""

    def __init__(self, spec: Spec, description: Description, version: Version) -> None:
        self.spec = spec
        self.description = description
        self.version = version
        self.offered: tuple[control.Described, ...] = ()
        """As the latest process said it, with schemas."""
        self.state: State = "stopped"
        self.reason = ""
        self.serving: Serving | None = None
        self.plan: Plan | None = None
        self.sockets: dict[str, socket.socket] = {}
        self.restarts = 0
        self.crashes: deque[float] = deque()
        """When it crashed lately: CLOCK_MONOTONIC seconds."""
        self.changing = trio.Lock()
        """One change of its life at a time."""
        self.up = trio.Event()
        """Set while it serves."""
        self.own: Limits | None = None
        """What a person set for it to use, beneath its slice."""
        self.unenforced: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def start(self) -> Literal["zygote", "exec"]:
        """How its processes start: a heavy one by `exec` always."""
        return "exec" if self.description.heavy or self.spec.start == "exec" else "zygote"

    def down(self) -> None:
        """It does not serve now; whoever waits for `up` goes on waiting."""
        if self.up.is_set():
            self.up = trio.Event()

    def group(self, node: Node) -> Group:
        """Its control group."""
        return node.slices.group(self.spec.slice or "servers", self.name)

    def uid(self, node: Node) -> int | None:
        """The user id of its processes; None without root: the kernel's own."""
        own = node.uids.of(self.name)
        return SHARED_UID if own is not None and "own-uid" in self.spec.drop else own


class Supervisor:
    def __init__(self, node: Node) -> None:
        self._node = node

    # up -----------------------------------------------------------------------------------------------------

    async def start(self, server: Server) -> None:
        """Start a process and wait until it serves. Raises `StartFailed`; then nothing of it is left."""
        node = self._node
        for need in needs.lost(node, server):
            raise StartFailed(
                server=server.name,
                step="needs",
                reason=f"its capability for {need!r} was revoked; `atoll restart {server.name}` gives it a new one",
            )
        server.state = "starting"
        try:
            version = node.versions.get(server.spec.package, server.spec.version)
            plan = launching.protection(node, server, server.spec.level, version)
            serving = await launching.launch(node, server, version, plan)
        except (CannotConfine, ZygoteDied, OSError) as error:
            raise StartFailed(server=server.name, step="process", reason=str(error)) from error
        server.version, server.plan, server.serving = version, plan, serving
        server.offered = (await self.until_ready(server, serving)).interfaces
        self.serves(server, serving)

    async def until_ready(
        self, server: Server, serving: Serving, within: float = READY_WITHIN
    ) -> control.Ready:
        """The process's next `Ready`. Raises `StartFailed` with its reason, after it has ended."""
        try:
            with trio.move_on_after(within):
                await serving.ready.wait()
        except BaseException:
            await self.end_now(serving, "nobody waits for it to start any more")
            raise
        serving.ready = trio.Event()
        offered, serving.offered = serving.offered, None
        if offered is not None and serving.failed is None and not serving.gone:
            return offered
        said, hung = serving.failed, not serving.gone
        await self.end_now(serving, "it could not start")
        if said is not None:
            raise StartFailed(server=server.name, step=said.step, reason=said.sentence)
        how = serving.process.exit if serving.process is not None else None
        reason = f"no answer in {within:g} s" if hung else f"its process {how}"
        raise StartFailed(server=server.name, step="start", reason=reason)

    def serves(self, server: Server, serving: Serving) -> None:
        """The process is what the server's channels go to from now on."""
        server.serving = serving
        server.state, server.reason = "serving", ""
        self._node.authority.served_again(server.name)
        server.up.set()

    # conversation -------------------------------------------------------------------------------------------

    async def converse(self, serving: Serving) -> None:
        """Hear what a process says until it is gone. One that speaks nonsense is ended."""
        connection = serving.connection
        assert connection is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            try:
                while (packet := await connection.receive()) is not None:
                    self._heard(serving, *packet)
            except PeerMisbehaved as error:
                self._node.events.ended(serving.holder, f"it broke the protocol: {error.check}")
                if serving.process is not None:
                    serving.process.kill()
            nursery.cancel_scope.cancel()
        serving.silent.set()

    def _heard(self, serving: Serving, message: control.ToKernel, descriptors: list[int]) -> None:
        node = self._node
        match message:
            case control.Ready():
                serving.offered = message
                serving.ready.set()
            case control.Failed():
                serving.failed = message
                node.logs.line(serving.holder, self._pid(serving), "error", f"{message.step}: {message.sentence}",
                               {"traceback": message.traceback} if message.traceback else {})  # fmt: skip
                serving.ready.set()
            case control.Refused(channel=channel, method=method, why=why, count=count):
                node.events.refused(serving.serves, channel, method, why, count)
            case control.Misbehaved(channel=channel, check=check):
                node.events.misbehaved(serving.serves, channel, check)
            case control.Drained(pending=pending, lost=lost):
                serving.pending, serving.lost = pending, lost
                serving.drained.set()
            case control.HandedOver() if descriptors and serving.handed_over is None:
                serving.handed_over = message, descriptors.pop(0)
                serving.handed.set()
            case control.Pong(number=number, busy=busy):
                serving.pong, serving.busy = number, busy
            case control.Log(level=level, text=text, fields=fields):
                node.logs.line(serving.holder, self._pid(serving), level, text, fields)
            case _:
                for descriptor in descriptors:
                    os.close(descriptor)
                raise PeerMisbehaved("the control socket", f"an unexpected {type(message).__name__}")
        for descriptor in descriptors:
            os.close(descriptor)

    @staticmethod
    def _pid(serving: Serving) -> int:
        return serving.process.pid if serving.process is not None else 0

    # down ---------------------------------------------------------------------------------------------------

    async def attend(self, server: Server, serving: Serving) -> None:
        """Wait for a process's end and tidy up after it, whatever else is given up; restart the server if nobody asked
        for the end."""
        assert serving.process is not None
        node = self._node
        with trio.CancelScope(shield=True):
            exit = await serving.process.wait()
            with trio.move_on_after(LAST_WORDS_WITHIN):
                await serving.silent.wait()
        crashed = server.serving is serving and not serving.expected_end and server.state != "starting"
        if server.serving is serving:
            self.lost(server, serving)
        self.let_go(server, serving, exit)
        if not crashed or node.down.is_set():
            return
        if server.state == "frozen":
            await self._died_frozen(server, exit)
        else:
            await self.after_crash(server, serving, str(exit))

    def lost(self, server: Server, serving: Serving) -> None:
        """The process that served is gone: the channels wait for the next one."""
        server.serving = None
        server.down()
        if server.name == STORE:
            self._node.store.lost()
        self._node.authority.server_died(serving)

    def let_go(self, server: Server, serving: Serving, exit: Exit) -> None:
        """What an ended process held is given up, its row says how it ended, and whoever waits for it goes on."""
        node = self._node
        ended = node.authority.leave(serving, serving.session)
        node.grants.leave(serving)
        node.parties.pop(serving.number, None)
        node.ledger.release_all(serving.account, serving.cost)
        node.events.capabilities((), ended)
        serving.close()
        self._record_end(serving, exit, server)
        serving.ready.set()
        serving.drained.set()
        serving.handed.set()
        serving.ended.set()

    def _record_end(self, serving: Serving, exit: Exit, server: Server) -> None:
        node = self._node
        row = self.process_row(server, serving)
        how = serving.expected_end or str(exit)
        node.store.later(node.store.batch("a process ended").put(
            msgspec.structs.replace(row, ended=node.now(), exit=how)
        ))  # fmt: skip

    def process_row(self, server: Server, serving: Serving) -> ProcessRow:
        """The row of a process as it runs."""
        node = self._node
        return ProcessRow(
            boot=node.boot, process=serving.number, server=server.name, version=server.version.hash,
            pid=self._pid(serving), started=serving.started, start_ticks=0,
            uid=server.uid(node) or os.geteuid(),
        )  # fmt: skip

    def protection_row(self, server: Server) -> ProtectionRow:
        """The row of what protects a server."""
        plan = server.plan
        assert plan is not None
        return ProtectionRow(
            server=server.name, asked=plan.wanted, level=plan.level, mechanisms=plan.in_force,
            weakenings=tuple((w.mechanism, w.reason) for w in plan.weakenings),
        )  # fmt: skip

    async def after_crash(self, server: Server, serving: Serving, how: str) -> None:
        """Restart with a growing wait, or give up where crashes are a loop. `how` it crashed, or why it did not start."""
        node, restart = self._node, server.spec.restart
        now = trio.current_time()
        server.crashes.append(now)
        while server.crashes and now - server.crashes[0] > restart.within:
            server.crashes.popleft()
        loop = len(server.crashes) >= restart.limit
        wait = min(restart.first * 2 ** (len(server.crashes) - 1), restart.most) * (
            1 + node.chance.jitter() / 4
        )
        last = node.logs.last(server.name)
        told = how + (f"; last line: {last}" if last else "")
        row = CrashRow(
            server=server.name, boot=node.boot, process=serving.number, version=server.version.hash,
            time=node.now(), how=told, again=0 if loop else int(wait * 1e9),
        )  # fmt: skip
        node.events.crashed(server.name, told, row)
        if loop:
            self.give_up(server, f"crashed {len(server.crashes)} times within {restart.within:g} s: {how}")
            return
        server.state, server.reason = "restarting", f"its process {how}"
        await node.clock.sleep(wait)
        async with server.changing:
            if server.state == "restarting" and server.serving is None and not node.down.is_set():
                await self.try_again(server, serving)

    async def _died_frozen(self, server: Server, exit: Exit) -> None:
        """Whoever froze it took its time away, and a restart would give it back: that is for a person to do."""
        self.give_up(server, f"its process {exit} while it was frozen: start it with `atoll restart`")
        await server.group(self._node).thaw()

    async def try_again(self, server: Server, before: Serving) -> None:
        """Restart after a crash; what does not come up counts as a crash, too."""
        server.restarts += 1
        try:
            await self.start(server)
        except AtollError as error:
            server.state = "restarting"
            self._node.events.event("restart failed", server.name, str(error))
            self._node.soon(self.after_crash, server, before, f"could not be started again: {error}")
            return
        if server.name == STORE:
            self._node.soon(self._node.store.settle)  # not under the lock that its next restart waits for

    def give_up(self, server: Server, reason: str) -> None:
        """Leave a server down. Its callers are told; without the store the node ends."""
        server.state, server.reason = "failed", reason
        self._node.authority.closed(server.name)
        self._node.events.event("stays down", server.name, reason)
        if server.name == STORE:
            self._node.fail(f"state {reason}")

    async def end(self, server: Server, deadline: float, reason: str) -> None:
        """Let the server's process finish until the deadline, then end it."""
        serving = server.serving
        if serving is None or serving.process is None:
            return
        serving.expected_end = reason
        server.down()
        if server.state == "frozen":
            await server.group(self._node).thaw()
            serving.notice.gate(False)
        until = self._node.clock.monotonic() + int(deadline * 1e9)
        serving.send(control.Stop(deadline=until))
        with trio.move_on_after(deadline + KILL_AFTER):
            await serving.ended.wait()
        await self.end_now(serving, reason)

    async def end_now(self, serving: Serving, reason: str) -> None:
        """End a process that is given no time, and wait until what it held was let go."""
        serving.expected_end = reason
        if serving.process is not None:
            serving.process.kill()
        with trio.CancelScope(shield=True):
            await serving.ended.wait()
