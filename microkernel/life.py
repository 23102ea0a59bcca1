"""System calls on a server's life: load, stop, restart, freeze, thaw, and what it may use."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from atoll.ipc.errors import AtollError, BadRequest, DeadlineExceeded
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.records import KeyspaceRow, ServerRow

from . import needs
from .authority import Authority
from .capability_rows import write_ended, write_made
from .changes import Batch
from .configurations import configurations, write_change
from .events import Events
from .failpoints import reach
from .grants import Grants
from .image_check import STORE
from .image_read import NAME
from .needs import Needs
from .node import Node
from .packages import Packages
from .parties import KERNEL, Serving
from .process_rows import process_row, protection_row
from .server import Server
from .slices import GroupFailed
from .specs import from_load
from .supervisor import Supervisor
from .windows import Windows

FREEZE_WITHIN = 5.0
CAUGHT_OFTEN = 10
"""Times in a row: no honest loop stands still within its window so often, since it is there for microseconds."""
UNDO_WITHIN = 5.0
"""Seconds for which a failed load waits until the store has forgotten it."""


class Life:
    def __init__(
        self, node: Node, events: Events, grants: Grants, authority: Authority, needs: Needs,
        supervisor: Supervisor, packages: Packages, windows: Windows,
    ) -> None:  # fmt: skip
        self._node = node
        self._events = events
        self._grants = grants
        self._authority = authority
        self._needs = needs
        self._supervisor = supervisor
        self._packages = packages
        self._windows = windows

    # load ---------------------------------------------------------------------------------------------------

    async def load(self, what: calls.Load) -> Server:
        """Start a server that the image does not have. After a failure nothing of it is left but its version."""
        node = self._node
        if not NAME.fullmatch(what.server):
            raise BadRequest(
                where="load: server", expected="a-z, then a-z 0-9 _ -, 40 at most", got=repr(what.server)
            )
        self._free(what.server)
        version = await self._packages.version_of(what.server, Path(what.package))
        spec = from_load(what, version, node.image.node.account)
        description = await self._packages.describe(spec, version)
        server = Server(spec, description, version)
        named = needs.named_keyspaces(server)
        needs.complete(server)
        needs.as_private(server, node.image.keyspace)
        needs.known(named, node.keyspaces)
        self._packages.check_level(server, spec.level, version)
        batch = node.store.batch(f"load {server.name}")
        batch.put(server.spec.row(), self._packages.version_row(version, what.package, description))
        write_change(batch, (), configurations(server.spec, description))
        async with server.changing:  # from before others can name it: they wait until it is loaded, or is not
            self._free(what.server)
            needs.undisclosed(
                server, node.servers.values()
            )  # with the last step: nobody else comes in between
            node.servers[server.name] = server
            self._authority.interfaces[server.name] = [offer.name for offer in description.interfaces]
            try:
                await self._begin(server, batch)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._unload(server)
                raise
        self._record_start(server)
        return server

    def _free(self, name: str) -> None:
        if name in self._node.servers or name == KERNEL:
            got = f"{name!r}, which there is: `atoll swap {name} PACKAGE` replaces it"
            raise BadRequest(where="load: server", expected="a name that is free", got=got)

    async def _begin(self, server: Server, batch: Batch) -> None:
        """Its capabilities and rows, then its process."""
        node = self._node
        for offer in server.description.interfaces:
            write_made(batch, node.tree.offer(server.name, offer.name, offer.rights)[0])
        made = []
        try:
            for name in needs.keyspaces_of(server):
                if name not in node.keyspaces:
                    kept = needs.retention_of(name)
                    badge = node.keyspaces[name] = await node.store.state.make_keyspace(name, kept)
                    made.append(name)
                    row = KeyspaceRow(keyspace=name, badge=badge, retention=kept.age, versions=kept.versions)
                    batch.put(row)
            self._needs.drop(self._needs.bind(server, batch), batch)
            await node.store.commit(batch.changes())
        except BaseException:
            for name in made:  # it is not known yet: whoever names it next has its row to write
                del node.keyspaces[name]
            raise
        reach("load: committed")
        await self._supervisor.start(server)
        reach("load: started")

    async def _unload(self, server: Server) -> None:
        """As if it had never been loaded; its keyspaces stay."""
        node = self._node
        await self._supervisor.end(server, 0.0, "it could not be loaded")
        server.state = "failed"
        self._grants.server_left(server.name)
        batch = node.store.batch(f"undo load {server.name}")
        for ended in (node.tree.withdraw(server.name), node.tree.forget(server.name)):
            self._authority.clear(ended)
            write_ended(batch, ended)
        for key in [key for key in node.bound if key[0] == server.name]:
            del node.bound[key]
        for channel in node.channels.of_server(server.name):
            self._authority.disconnect(channel, f"{server.name} was not loaded")
        node.servers.pop(server.name, None)
        self._authority.interfaces.pop(server.name, None)
        table = self._authority.tables.pop(server.name, None)
        if table is not None:
            table.close()
        for end in server.sockets.values():
            end.close()
        batch.delete(ServerRow, server.name)
        write_change(batch, configurations(server.spec, server.description), ())
        forgotten = False
        with trio.move_on_after(UNDO_WITHIN), suppress(AtollError):
            await node.store.commit(batch.changes())
            forgotten = True
        if not forgotten:
            node.store.owe(
                batch
            )  # the store is down, or full: without it the next boot starts what was not loaded

    def _record_start(self, server: Server) -> None:
        node = self._node
        if server.serving is not None:
            rows = process_row(node, server, server.serving), protection_row(server)
            node.store.later(node.store.batch(f"start {server.name}").put(*rows))

    # stop and start -----------------------------------------------------------------------------------------

    async def stop(self, server: Server, deadline: float) -> None:
        """Let a server finish until the deadline, then end it; it stays stopped, also at the next boot."""
        if server.name == STORE:
            raise BadRequest(
                where="stop", expected="a server other than the store", got="state: every call needs it"
            )
        async with self._node.changing(server):
            # Half a stop would leave callers that wait for nobody: once begun, no deadline of the caller's ends it.
            with trio.CancelScope(shield=True):
                await self._stop(server, deadline, "a person stopped it")
                self._authority.closed(server.name)
                reach("stop: ended")
                await self._remember(server, stopped=True)
                reach("stop: committed")

    async def _stop(self, server: Server, deadline: float, reason: str) -> None:
        if server.state == "frozen":
            with suppress(GroupFailed):  # one that cannot end by itself is killed
                await self._thaw(server)
        server.state, server.reason = "stopped", reason
        await self._supervisor.end(server, deadline, reason)
        server.state, server.reason = "stopped", reason

    async def _remember(self, server: Server, *, stopped: bool) -> None:
        node = self._node
        spec = msgspec.structs.replace(server.spec, stopped=stopped)
        batch = node.store.batch(f"{'stop' if stopped else 'restart'} {server.name}")
        await node.store.commit(batch.put(spec.row()).changes())
        server.spec = spec  # not before: a restart that is asked for again has its row to write yet

    async def restart(self, server: Server, deadline: float) -> None:
        """Stop a server, if it runs, and start its version anew."""
        async with self._node.changing(server):
            with trio.CancelScope(shield=True):
                await self._restart(server, deadline)
        self._record_start(server)

    async def _restart(self, server: Server, deadline: float) -> None:
        node = self._node
        if server.serving is not None:
            await self._stop(server, deadline, "restarted by a person")
        server.crashes.clear()
        server.restarts += 1
        try:
            await self._bind_anew(server)
            await self._supervisor.start(server)
        except AtollError as error:
            self._supervisor.give_up(server, str(error))
            raise
        if server.name == STORE:
            node.soon(node.store.settle)
        if server.spec.stopped:
            await self._remember(server, stopped=False)

    async def _bind_anew(self, server: Server) -> None:
        """Who starts a server by hand gives it what image or load say it has, also what was revoked meanwhile."""
        node = self._node
        lost = needs.lost(node, server)
        if not lost:
            return
        batch = node.store.batch(f"bind {server.name} anew")
        self._needs.drop(self._needs.bind(server, batch), batch)
        await node.store.commit(batch.changes())
        for need in lost:
            self._events.event("bind", server.name, f"a new capability for {need}: the last one was revoked")

    # freeze and thaw ----------------------------------------------------------------------------------------

    async def freeze(self, server: Server, reason: str) -> None:
        """Halt a server between two messages: the gate first, then its processes stand still."""
        if server.name == STORE:
            raise BadRequest(
                where="freeze", expected="a server other than the store", got="state: every call needs it"
            )
        async with self._node.changing(server):
            serving = server.serving
            if serving is None or server.state != "serving":
                raise calls.WrongState(server=server.name, state=server.state, wanted="serving")
            serving.notice.gate(True)
            try:
                await self._halt(server, serving)
                if server.serving is not serving:
                    raise calls.WrongState(server=server.name, state=server.state, wanted="serving")
                server.state, server.reason = "frozen", reason or "frozen by a person"
                reach("freeze: frozen")
                await self._record("freeze", server, server.reason)
                reach("freeze: committed")
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._unfreeze(server)
                raise

    async def _halt(self, server: Server, serving: Serving) -> None:
        """Have it stand still, but not in the window between the check of a capability and the handler's first step:
        what was checked there would begin on thaw, whatever had been revoked meanwhile. One that always is there ends."""
        caught = 0
        with trio.move_on_after(FREEZE_WITHIN):
            while True:
                await self._windows.passed([serving], partial(self._take_its_time, server))
                if server.state == "frozen":
                    break
                await self._stand(server, still=True)
                # Cannot be spared: a look at the window of who stands still, `serving.status.window() & 1`.
                if serving.gone or not serving.status.window() & 1:
                    return
                caught += 1
                await self._stand(server, still=False)
        if server.state != "frozen":
            if caught < CAUGHT_OFTEN:
                raise DeadlineExceeded("freeze", FREEZE_WITHIN)
            self._events.ended(
                server.name, f"{caught} times it stood still where nothing that it does takes time"
            )
            self._take_its_time(server)
        with trio.CancelScope(shield=True):
            await self._end_instead(server, serving)

    @staticmethod
    def _take_its_time(server: Server) -> None:
        """Whatever ends it from here on gives it none back."""
        server.state = "frozen"

    async def _end_instead(self, server: Server, serving: Serving) -> None:
        """In place of freezing it: as one that died frozen it stays down."""
        if serving.process is not None:
            serving.process.kill()
        with suppress(GroupFailed):
            await self._stand(server, still=False)
        await serving.ended.wait()

    async def _stand(self, server: Server, *, still: bool) -> None:
        """Have its processes stand still, or go on. Raises `GroupFailed`."""
        group = self._node.group(server)
        try:
            await (group.freeze() if still else group.thaw())
        except OSError as error:
            raise GroupFailed(
                server.name, "frozen" if still else "let go on", error.strerror or str(error)
            ) from error

    async def thaw(self, server: Server) -> None:
        """Let a frozen server go on: the row first, since this gives back what was taken."""
        async with self._node.changing(server):
            if server.state != "frozen":
                raise calls.WrongState(server=server.name, state=server.state, wanted="frozen")
            await self._record("thaw", server, "it goes on")
            await self._thaw(server)

    async def _record(self, kind: str, server: Server, sentence: str) -> None:
        node = self._node
        row = self._events.row(kind, server.name, sentence)
        await node.store.commit(node.store.batch(f"{kind} {server.name}").put(row).changes())

    async def _unfreeze(self, server: Server) -> None:
        """A freeze that could not be carried through, or whose row may not be there, is none."""
        if server.state == "frozen":
            self._events.event("freeze failed", server.name, "it could not be recorded")
        try:
            await self._thaw(server)
        except GroupFailed as failed:  # nobody knows whether it stands still, and its gate is shut
            self._events.ended(server.name, str(failed))
            if server.serving is not None and server.serving.process is not None:
                server.serving.process.kill()

    async def _thaw(self, server: Server) -> None:
        """Nobody was in the window (see `_halt`): whatever its loop takes now, it checks now. A process that died meanwhile
        is another's care."""
        serving = server.serving
        await self._stand(server, still=False)
        if serving is not None and server.serving is serving:
            serving.notice.gate(False)
            server.state, server.reason = "serving", ""
