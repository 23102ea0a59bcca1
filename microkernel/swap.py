"""Swap: a new version, or another level, in a running server's place, with the same channels.

The new process starts beside the old one and says what it offers. The old one drains and hands over; the new one takes
over and starts up; then the row is committed, and only then may the new one take a call. Until it has taken one, or
sleeps because none is there to take, any failure resumes the old process as if nothing had been; from then on a failure
is a crash of the new version. From the hand-over until then nobody serves: channels that are opened meanwhile wait.

Nothing goes back where force ended calls, or where the old process died: then the new one is the server from the commit.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import trio

from atoll.ipc import schema
from atoll.ipc.errors import AtollError, BadRequest, DrainTimedOut, Incompatible, PeerMisbehaved
from atoll.ipc.runtime.describe import Description
from atoll.ipc.system import control, handover
from atoll.ipc.system import kernel as calls
from atoll.ipc.system.kernel import StartFailed, Swapped, WrongState
from atoll.ipc.system.records import NeedRow, SwapRow

from . import ending, needs
from .authority import Authority
from .capability_rows import write_made
from .changes import Batch
from .configurations import configurations, write_change
from .events import Events
from .failpoints import reach
from .grants import Grants
from .image_check import STORE
from .launching import Launching, until_ready
from .needs import Needs
from .node import Node
from .packages import Packages
from .parties import FIRST_PING, Serving
from .process_rows import process_row, protection_row
from .processes import CannotConfine, ZygoteDied
from .protection import Plan
from .readers import Readers
from .server import Server
from .supervisor import Supervisor
from .versions import Version

HAND_OVER_WITHIN = 30.0
"""Seconds for the old process to give its state, once it has drained, and for the new one to take it."""
OLD_ENDS_WITHIN = 5.0
FIRST_TURN_WITHIN = 10.0
"""Seconds for the new process to take its first call, or to find that there is none."""
LOOK_AGAIN = 0.001


class Swaps:
    def __init__(
        self, node: Node, events: Events, grants: Grants, authority: Authority, needs: Needs,
        launching: Launching, supervisor: Supervisor, readers: Readers, packages: Packages,
    ) -> None:  # fmt: skip
        self.node = node
        self.events = events
        self.grants = grants
        self.authority = authority
        self.needs = needs
        self.launching = launching
        self.supervisor = supervisor
        self.readers = readers
        self.packages = packages
        self._sequence = 0

    async def swap(self, what: calls.Swap, deadline: float) -> Swapped:
        """See `Kernel.swap`. `deadline`: seconds for the old version to finish what it has in hand."""
        server = self.node.server(what.server)
        async with self.node.changing(server):
            _require_serving(server)
            async with self.readers.aside(server):
                _require_serving(server)  # it may have crashed meanwhile
                return await _Swap(self, server, what, deadline).run()

    def number(self) -> int:
        self._sequence += 1
        return self._sequence


def _require_serving(server: Server) -> None:
    if server.serving is None or server.state != "serving":
        raise WrongState(server=server.name, state=server.state, wanted="serving")


class _Swap:
    """One swap in hand."""

    def __init__(self, swaps: Swaps, server: Server, what: calls.Swap, deadline: float) -> None:
        self.node = node = swaps.node
        self.events = swaps.events
        self.grants = swaps.grants
        self.authority = swaps.authority
        self.needs = swaps.needs
        self.launching = swaps.launching
        self.supervisor = swaps.supervisor
        self.packages = swaps.packages
        self.server = server
        self.what = what
        self.deadline = deadline
        assert server.serving is not None
        self.old: Serving = server.serving
        self.began = node.now()
        self.sequence = swaps.number()
        self.offered: tuple[control.Described, ...] = ()
        self.pause = 0.0
        self.on_trial = False
        """The old process serves no more, and it is not known yet whether the new one does."""
        self.paused = 0
        self.positions: dict[int, tuple[int, ...]] = {}
        """By channel where the old process stopped; empty: a new epoch has begun."""
        self.ended: dict[str, int] = {}
        """Calls that force left unanswered."""
        self.bound = {need: id for (name, need), id in node.bound.items() if name == server.name}
        """The capabilities of its needs, as the old process has them."""
        self.configured = configurations(server.spec, server.description)
        """What the old version is configured with."""
        self.to_configure = self.configured
        """What the new one is."""
        self.replaced: list[int] = []
        """Those of them that the new version's needs do not stand for."""

    async def run(self) -> Swapped:
        node, server = self.node, self.server
        version = await self._version()
        level = self.what.level or server.spec.level
        try:
            description = await self._describe(version)
        except BaseException as error:
            node.store.later(node.store.batch("swap refused").put(self._refused(version, level, _why(error))))
            raise
        offers = self.authority.interfaces
        before = server.spec, server.description, offers[server.name]
        server.spec = msgspec.structs.replace(
            server.spec, version=version.hash, package=version.package, level=level
        )
        server.description, server.replaced = description, server.description
        batch = node.store.batch(f"swap {server.name}")
        new: Serving | None = None
        committed = False
        try:
            plan = self.packages.check_level(server, level, version)
            needs.complete(server)
            needs.as_private(server, node.image.keyspace)
            needs.undisclosed(server, node.servers.values())
            self.to_configure = configurations(server.spec, description)
            self._offer(description)
            self.replaced = self.needs.bind(server, batch)
            new = await self._start(version, plan)
            reach("swap: started")
            handed_over = await self._hand_over(new)
            reach("swap: handed over")
            await self._commit(batch, version, level)
            committed = True
            reach("swap: committed")
            with trio.CancelScope(shield=True):
                died = await self._first_turn(new)
        except BaseException as error:
            server.spec, server.description, offers[server.name] = before
            with trio.CancelScope(shield=True):
                await self._roll_back(new, version, level, committed, _why(error))
            raise
        finally:
            server.replaced = None
        return await self._settle(new, version, plan, handed_over, died)

    # before the old one is touched --------------------------------------------------------------------------

    async def _version(self) -> Version:
        what, node = self.what, self.node
        if what.package and what.version:
            raise BadRequest(where="swap", expected="a package or a version", got="both")
        if what.package:
            return await self.packages.version_of(what.server, Path(what.package))
        return node.versions.get(self.server.spec.package, what.version or self.server.version.hash)

    async def _describe(self, version: Version) -> Description:
        """What the new version says of itself; it must serve the interfaces there are."""
        server = self.server
        if version == server.version:
            return server.description
        described = await self.packages.describe(server.spec, version)
        old = self.authority.interfaces[server.name]
        new = [offer.name for offer in described.interfaces]
        if new[: len(old)] != old:
            raise Incompatible(
                server.name, (f"expected the interfaces {', '.join(old)}, got {', '.join(new)}",)
            )
        return described

    def _offer(self, description: Description) -> None:
        """Rights that the new version adds get bits of their own; none is ever moved or taken away, also if the swap
        comes to nothing."""
        node, server = self.node, self.server
        batch = node.store.batch(f"rights of {server.name}")
        self.authority.interfaces[server.name] = [offer.name for offer in description.interfaces]
        for offer in description.interfaces:
            now, before = node.tree.offer(server.name, offer.name, offer.rights)
            if now != before:
                write_made(batch, now)
        if batch:
            node.store.owe(batch)  # without it the next boot takes back what was granted of them

    async def _start(self, version: Version, plan: Plan) -> Serving:
        """The new process, up to what it offers. Raises `StartFailed`, `Incompatible`; then it is gone."""
        server = self.server
        try:
            new = await self.launching.launch(server, version, plan, self.supervisor.attend, beside=True)
        except (CannotConfine, ZygoteDied, OSError) as error:
            raise StartFailed(server=server.name, step="process", reason=str(error)) from error
        offered = await until_ready(server, new)
        try:
            self._check(offered)
        except BaseException:
            await ending.end_now(new, "it is not compatible")
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
        if old.gone:
            raise StartFailed(server=self.server.name, step="drain", reason="the old version ended meanwhile")
        old.drain, old.drained = old.drain + 1, trio.Event()
        self.server.state = "draining"
        end = node.clock.monotonic() + int(self.deadline * 1e9)
        old.send(control.Drain(deadline=end, number=old.drain))
        self.paused = node.clock.monotonic()
        with trio.move_on_after(self.deadline + OLD_ENDS_WITHIN):
            await old.drained.wait()
        if old.gone or not old.drained.is_set():
            raise StartFailed(
                server=self.server.name, step="drain", reason="the old version ended or did not answer"
            )
        # Calls that their clients may send again are sent to the new version; the store's may be half committed.
        kept = old.pending if self.server.name == STORE else old.lost
        if kept and not what.force:
            raise DrainTimedOut(kept)
        reach("swap: drained")
        self.ended = old.pending
        old.handed = trio.Event()
        old.forget_hand_over()  # an answer to an earlier swap lies before that of this one's drain
        old.failed = None
        if self.server.name == STORE:
            node.store.lost()  # what is committed from now on waits for the new one
        old.send(control.HandOver())
        with trio.move_on_after(HAND_OVER_WITHIN):
            await old.handed.wait()
        if old.handed_over is None or old.gone:
            reason = old.failed.sentence if old.failed is not None else "the old version gave no state"
            raise StartFailed(server=self.server.name, step="hand over", reason=reason)
        told, state = old.handed_over
        old.handed_over, old.retired = None, True
        try:
            self.positions = handover.positions(told, state)
            new.send(control.TakeOver(size=told.size), (state,))
        except PeerMisbehaved as fault:
            raise StartFailed(server=self.server.name, step="hand over", reason=str(fault)) from fault
        finally:
            os.close(state)
        offered = await until_ready(self.server, new, HAND_OVER_WITHIN)
        self.offered = offered.interfaces
        return told.size

    async def _commit(self, batch: Batch, version: Version, level: str) -> None:
        """What is to run from now on, as a row; for the store itself, in the journal."""
        node, server = self.node, self.server
        batch.put(server.spec.row(), self._row(version, level, done=True, sentence=""))
        write_change(batch, self.configured, self.to_configure)
        if self.what.package:
            batch.put(self.packages.version_row(version, self.what.package, server.description))
        if server.name == STORE:
            try:
                node.store.journal.wait(batch.changes())
            except OSError as error:
                reason = f"the boot journal could not be written: {error.strerror}"
                raise StartFailed(server=server.name, step="commit", reason=reason) from error
        else:
            await node.store.commit(batch.changes())

    # the first call -----------------------------------------------------------------------------------------

    async def _first_turn(self, new: Serving) -> bool:
        """Give the new process the channels and let it serve. Whether it died over its first call; raises `StartFailed`
        if it ended, or hung, before that and there is an old one to go back to."""
        node, server, old = self.node, self.server, self.old
        returns = not self.ended and server.serving is old and not old.gone
        if self.ended and server.serving is old:
            # What force leaves unanswered ends as after a crash: outcome unknown, and repeated where that is allowed.
            self.authority.server_died(old)
        if not returns:
            self.positions = {}
        self.on_trial, server.serving = True, None
        for channel in node.channels.of_server(server.name):
            self.authority.give(channel, new, self.positions.get(channel.number, ()))
        self.grants.hand_over(new, node.channels.of_server(server.name))
        taken = {channel.number: channel.taken() for channel in node.channels.of_server(server.name)}
        new.send(control.Resume())
        self.pause = (node.clock.monotonic() - self.paused) / 1e9
        if not returns or await self._turned(new):
            return False
        hung = not new.gone
        await ending.end_now(new, "it did not serve")
        channels = node.channels.of_server(server.name)
        if old.gone or any(
            channel.taken() != taken.get(channel.number, channel.taken()) for channel in channels
        ):
            return True
        how = f"no turn of its loop in {FIRST_TURN_WITHIN:g} s" if hung else f"its process {_exit(new)}"
        raise StartFailed(server=server.name, step="its first turn", reason=how)

    async def _turned(self, new: Serving) -> bool:
        """Whether the process takes calls: it has begun one, or has looked at all rings and sleeps. What its status says
        is a claim, and of itself only."""
        new.send(control.Ping(number=FIRST_PING))
        turned = False
        with trio.move_on_after(FIRST_TURN_WITHIN):
            while not new.gone and not turned:
                signs = new.status.signs()
                # It answers after `Resume`; if it sleeps then, it has found nothing to take.
                turned = bool(signs.served or (new.first_answered and signs.parked))
                await trio.sleep(LOOK_AGAIN)
        return turned

    # the two outcomes ---------------------------------------------------------------------------------------

    async def _settle(
        self, new: Serving, version: Version, plan: Plan, handed_over: int, died: bool
    ) -> Swapped:
        """The channels are the new process's; the old one ends."""
        node, server, old = self.node, self.server, self.old
        level_before, version_before = server.plan.level if server.plan else plan.level, server.version
        old.expected_end = f"swapped for {version.hash[:10]}"
        server.version, server.plan, server.offered = version, plan, self.offered
        self.supervisor.serves(server, new)
        reach("swap: served")
        if died or new.gone:
            self.supervisor.lost(server, new)
            node.soon(self.supervisor.after_crash, server, new.number, str(_exit(new)))
        elif server.name == STORE:
            node.soon(node.store.settle)
        within = 0.0 if self.ended else OLD_ENDS_WITHIN
        with trio.CancelScope(shield=True):
            await ending.end(old, old.expected_end, node.clock, within)
        replaced = node.store.batch("swapped")
        self.needs.drop(self.replaced, replaced)
        if replaced:
            node.store.owe(
                replaced
            )  # without it the next boot gives back what the new version has no need of
        if not new.gone:
            self._rebind(new)
            rows = process_row(node, server, new), protection_row(server)
            node.store.later(node.store.batch("swapped").put(*rows))
        self.events.event("swap", server.name, f"{version_before.hash[:10]} ({level_before}) gave way to "
                          f"{version.hash[:10]} ({plan.level})")  # fmt: skip
        return Swapped(
            server=server.name, old=version_before.hash, new=version.hash, level=plan.level,
            pause=self.pause, handed_over=handed_over, ended=self.ended,
        )  # fmt: skip

    def _rebind(self, new: Serving) -> None:
        """The lasting capabilities stand on the new process's channels from now on; those that no need names, and that
        the old process was given, are delivered to it."""
        node, server = self.node, self.server
        bound = {node.bound.get((server.name, need)) for need in server.needs}
        for held in node.tree.held_by(server.name):
            if held.id in bound:
                self.authority.enter(held, self.authority.connect(new, held.server))
            elif self.authority.stands(held):
                self.authority.deliver_again(held, new)

    async def _roll_back(
        self, new: Serving | None, version: Version, level: str, committed: bool, why: str
    ) -> None:
        """The new process ends, the old one goes on as if nothing had been."""
        node, server, old = self.node, self.server, self.old
        if new is not None:
            await ending.end_now(new, f"swap refused: {why}")
        if self.on_trial and old.gone:
            # Neither is there any more: what is left is a crash of the old one.
            self.supervisor.lost(server, old)
            node.soon(self.supervisor.after_crash, server, old.number, str(_exit(old)))
        elif not old.gone and server.state == "draining":
            server.serving, old.retired = old, False
            self.authority.give_rest(server.name, old)
            self.grants.hand_over(old, node.channels.of_server(server.name))
            old.send(control.Resume())
            server.state = "serving"
            if server.name == STORE:
                node.soon(node.store.settle)
        batch = node.store.batch("swap refused")
        self._unbind(batch)
        batch.put(server.spec.row(), self._refused(version, level, why))
        write_change(batch, self.to_configure, self.configured)
        if not committed:
            node.store.later(batch)
        elif server.name == STORE:
            self._take_back(batch)
        else:
            try:
                await node.store.commit(batch.changes())
            except AtollError:
                node.store.owe(batch)  # without it the next boot starts what was refused

    def _take_back(self, batch: Batch) -> None:
        """What was to run, in the journal, is not to run. The store cannot be waited for: the old one may crash any time,
        and its restart waits until this swap is over."""
        try:
            self.node.store.journal.wait(batch.changes())
        except OSError as error:
            # Its next boot runs what the journal says.
            self.node.fail(f"the boot journal could not be written: {error.strerror}")

    def _unbind(self, batch: Batch) -> None:
        """The needs stand for what they stood for before."""
        node, name = self.node, self.server.name
        now = {need: id for (server, need), id in node.bound.items() if server == name}
        for need, id in now.items():
            before = self.bound.get(need)
            if id == before:
                continue
            self.needs.drop([id], batch)
            if before is None:
                del node.bound[name, need]
                batch.delete(NeedRow, name, need)
            else:
                node.bound[name, need] = before
                batch.put(NeedRow(server=name, need=need, capability=before))

    # rows ---------------------------------------------------------------------------------------------------

    def _refused(self, version: Version, level: str, why: str) -> SwapRow:
        """Its row; and it is an event."""
        self.events.event("swap refused", self.server.name, why)
        return self._row(version, level, done=False, sentence=why)

    def _row(self, version: Version, level: str, *, done: bool, sentence: str) -> SwapRow:
        node, server = self.node, self.server
        return SwapRow(
            boot=node.boot, sequence=self.sequence, server=server.name, old=server.version.hash,
            new=version.hash, old_level=server.plan.level if server.plan else "", new_level=level, began=self.began,
            ended=node.now(), done=done, sentence=sentence,
        )  # fmt: skip


def _why(error: BaseException) -> str:
    """For the record: whoever asked may have gone, and what trio says of that is for programmers."""
    return "it was given up" if isinstance(error, trio.Cancelled) else str(error)


def _exit(serving: Serving) -> str:
    return str(serving.process.exit) if serving.process is not None else "never was"
