"""A server's life: brought up, watched, restarted after a crash with growing waits, ended."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import trio

from atoll.ipc.errors import AtollError
from atoll.ipc.system.calls import keyspace_of
from atoll.ipc.system.kernel import StartFailed
from atoll.ipc.system.records import CrashRow, ProcessRow

from . import ending, needs
from .authority import Authority
from .events import Events
from .image_check import STORE
from .launching import Launching, until_ready
from .logs import Logs
from .mechanisms import Group
from .node import Node
from .parties import Serving
from .process_rows import process_row
from .processes import CannotConfine, Exit, ZygoteDied
from .server import Server

KILL_AFTER = 1.0
"""Seconds beyond a stop's deadline until a process is killed."""
LEFT_END_WITHIN = 5.0
LAST_CALLS_WITHIN = 2.0
"""Seconds for the store to take what a process left of its record: its restart waits for that."""


class Supervisor:
    def __init__(
        self, node: Node, logs: Logs, events: Events, authority: Authority, launching: Launching
    ) -> None:
        self._node = node
        self._logs = logs
        self._events = events
        self._authority = authority
        self._launching = launching

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
            plan = self._launching.protection(server, server.spec.level, version)
            serving = await self._launching.launch(server, version, plan, self.attend)
        except (CannotConfine, ZygoteDied, OSError) as error:
            raise StartFailed(server=server.name, step="process", reason=str(error)) from error
        server.version, server.plan, server.serving = version, plan, serving
        server.offered = (await until_ready(server, serving)).interfaces
        self.serves(server, serving)

    def serves(self, server: Server, serving: Serving) -> None:
        """The process is what the server's channels go to from now on."""
        server.serving = serving
        server.state, server.reason = "serving", ""
        self._authority.served_again(server.name)

    # down ---------------------------------------------------------------------------------------------------

    async def attend(self, server: Server, serving: Serving) -> None:
        """Wait for a process's end and tidy up after it, whatever else is given up; restart the server if nobody asked
        for the end."""
        exit = self._explained(server, serving, await ending.has_ended(serving))
        await self._end_left(server, serving)
        await self._keep_calls(server, serving)
        crashed = server.serving is serving and not serving.expected_end and server.state != "starting"
        if server.serving is serving:
            self.lost(server, serving)
        ended = self._ended(server, serving, exit)
        self.let_go(serving)
        if not crashed or self._node.down.is_set():
            self._record_end(ended)
        elif server.state == "frozen":
            self._record_end(ended)
            await self._died_frozen(server, exit)
        else:
            if serving.process is not None:
                await self._logs.heard_out(serving.process.pid)
            await self.after_crash(server, serving.number, str(exit), ended)

    def _explained(self, server: Server, serving: Serving, exit: Exit) -> Exit:
        """An end with its cause, where the process's group knows that; also for who waits for the process to start."""
        if exit.signal == signal.SIGKILL and not serving.expected_end:
            with suppress(OSError):  # a group that says nothing any more
                if self._node.group(server).killed_for_memory() > serving.starved_before:
                    exit = msgspec.structs.replace(exit, why="its slice had no memory left for it")
        if serving.process is not None:
            serving.process.exit = exit
        return exit

    async def _end_left(self, server: Server, serving: Serving) -> None:
        """What the last process of a server started ends with it: it would go on in its name, and fill its slice."""
        others = [each for each in self._node.processes_of(server.name) if each is not serving]
        if all(other.process is not None and other.process.exit is not None for other in others):
            await self.end_all_in(self._node.group(server), server.name)

    async def end_all_in(self, group: Group, of: str) -> None:
        """What a process left behind in its control group, whose it was alone."""
        said = "processes that it started do not end"
        with trio.CancelScope(shield=True), trio.move_on_after(LEFT_END_WITHIN):
            try:
                await group.end()
                said = ""
            except OSError as error:
                said = f"processes that it started cannot be ended: {error.strerror}"
        if said:
            self._events.event("left behind", of, said)

    async def _keep_calls(self, server: Server, serving: Serving) -> None:
        """Put away what the process recorded of its calls and could not: the one that ended it is there."""
        node, keyspace = self._node, self._node.keyspaces.get(keyspace_of(server.name))
        if serving.tape is None or keyspace is None:
            return
        kept = False
        with trio.CancelScope(shield=True), trio.move_on_after(LAST_CALLS_WITHIN), suppress(AtollError):
            put = await node.store.put_away(keyspace, serving.number)
            for row in serving.tape.left(node.boot, serving.number, put, node.now(), node.clock.monotonic()):
                await node.store.append(keyspace, row)
            kept = True
        if not kept:
            self._events.event("calls lost", server.name, "the store did not take its last calls")

    def lost(self, server: Server, serving: Serving) -> None:
        """The process that served is gone: the channels wait for the next one."""
        server.serving = None
        if server.name == STORE:
            self._node.store.lost()
        self._authority.server_died(serving)

    def ended_reader(self, server: Server, serving: Serving, exit: Exit) -> None:
        """A reader process of the store has ended."""
        ended = self._ended(server, serving, exit)
        self.let_go(serving)
        self._record_end(ended)

    def let_go(self, serving: Serving) -> None:
        """What an ended process held is given up, and whoever waits for it goes on."""
        self._authority.leave(serving, serving.session)
        serving.close()
        serving.ready.set()
        serving.drained.set()
        serving.handed.set()
        serving.ended.set()

    def _ended(self, server: Server, serving: Serving, exit: Exit) -> ProcessRow:
        """Its row, which says how it ended."""
        row = process_row(self._node, server, serving)
        return msgspec.structs.replace(row, ended=self._node.now(), exit=serving.expected_end or str(exit))

    def _record_end(self, ended: ProcessRow) -> None:
        self._node.store.later(self._node.store.batch("a process ended").put(ended))

    async def after_crash(
        self, server: Server, process: int, how: str, ended: ProcessRow | None = None
    ) -> None:
        """Restart with a growing wait, or give up where crashes are a loop. `process`: its number, and `how` it crashed, or
        why it did not start; `ended`: its row, where nobody has recorded its end yet."""
        node, restart = self._node, server.spec.restart
        now = trio.current_time()
        server.crashes.append(now)
        while server.crashes and now - server.crashes[0] > restart.within:
            server.crashes.popleft()
        loop = len(server.crashes) >= restart.limit
        wait = min(restart.first * 2 ** (len(server.crashes) - 1), restart.most) * (
            1 + node.chance.jitter() / 4
        )
        lines = self._logs.last(server.name)
        words = _last_words(lines)
        told = how + (f"; last words: {words}" if words else "")
        row = CrashRow(
            server=server.name, boot=node.boot, process=process, version=server.version.hash,
            time=node.now(), how=told, again=0 if loop else max(1, int(wait * 1e9)), lines=lines,
        )  # fmt: skip
        self._events.crashed(server.name, told, row, ended)
        if loop:
            self.give_up(server, f"crashed {len(server.crashes)} times within {restart.within:g} s: {how}")
            return
        server.state, server.reason = "restarting", f"its process {how}"
        await node.clock.sleep(wait)
        async with server.changing:
            if server.state == "restarting" and server.serving is None and not node.down.is_set():
                await self.try_again(server)

    async def _died_frozen(self, server: Server, exit: Exit) -> None:
        """Whoever froze it took its time away, and a restart would give it back: that is for a person to do."""
        self.give_up(server, f"its process {exit} while it was frozen: start it with `atoll restart`")
        with suppress(OSError):  # it has ended, and what is left in there does not matter before a restart
            await self._node.group(server).thaw()

    async def try_again(self, server: Server) -> None:
        """Restart after a crash; what does not come up counts as a crash, too."""
        server.restarts += 1
        before = server.latest
        try:
            await self.start(server)
        except AtollError as error:
            server.state = "restarting"
            self._events.event("restart failed", server.name, str(error))
            # Where it came to no process: under the number of the last one it would take the place of that one's crash.
            process = server.latest if server.latest != before else self._node.number()
            self._node.soon(self.after_crash, server, process, f"could not be started again: {error}")
            return
        if server.name == STORE:
            self._node.soon(self._node.store.settle)  # not under the lock that its next restart waits for

    def give_up(self, server: Server, reason: str) -> None:
        """Leave a server down. Its callers are told; without the store the node ends."""
        server.state, server.reason = "failed", reason
        self._authority.closed(server.name)
        self._events.event("stays down", server.name, reason)
        if server.name == STORE:
            self._node.fail(f"state {reason}")

    async def end(self, server: Server, deadline: float, reason: str) -> None:
        """Let the server's process finish until the deadline, then end it."""
        serving = server.serving
        if serving is None or serving.process is None:
            return
        serving.expected_end = reason
        if server.state == "frozen":
            with suppress(OSError):  # one that cannot end by itself is killed
                await self._node.group(server).thaw()
            serving.notice.gate(False)
        await ending.end(serving, reason, self._node.clock, deadline, KILL_AFTER)


def _last_words(lines: Sequence[str]) -> str:
    """The last line that says something, without what a traceback of an exception group draws beside it."""
    return next((words for line in reversed(lines) if (words := line.strip(" |+-"))), "")
