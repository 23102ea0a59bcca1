"""From a server's spec to a process of it that has been told what it is: confinement, control socket, needs, channels."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import trio

from atoll.ipc.system import control
from atoll.ipc.system.kernel import StartFailed

from . import intents, versions
from .accounts import PROCESS, buffer
from .allotments import Allotments
from .authority import Authority
from .capabilities import Capability
from .connections import Connection
from .conversation import Conversation
from .ending import end_now
from .failpoints import reach
from .grants import Grants
from .image_check import STORE
from .logs import Logs
from .needs import LOCK_DESCRIPTOR, Needs, folders, sockets
from .node import Node
from .parties import KERNEL, Serving
from .process_rows import process_row
from .protection import Bind, Plan, Subject
from .protection import plan as plan_protection
from .protection.process import RESIDENT, may_lock
from .server import Server
from .slices import Limits, io, io_priority
from .slices.swap import devices
from .tapes import Tape
from .versions import Version

CONTROL_DESCRIPTOR = 3
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
UNFIT_FOR_STORE = {
    "processes": "the store's processes share the host's numbers: by them its database counts who reads, and takes two "
    "of one number for one process"
}
READY_WITHIN = 60.0
"""Seconds for a process to import its package and get through `start()`."""

Attend = Callable[[Server, Serving], Awaitable[None]]
"""Waits for the end of a process of a server, and tidies up after it."""


class Launching:
    """Starts processes of servers."""

    def __init__(
        self, node: Node, logs: Logs, allotments: Allotments, authority: Authority, grants: Grants, needs: Needs,
        conversation: Conversation,
    ) -> None:  # fmt: skip
        self._node = node
        self._logs = logs
        self._allotments = allotments
        self._authority = authority
        self._grants = grants
        self._needs = needs
        self._conversation = conversation

    def protection(
        self,
        server: Server,
        level: str,
        version: Version,
        *,
        reached: tuple[Bind, ...] | None = None,
        add: tuple[str, ...] = (),
        reader: bool = False,
    ) -> Plan:
        """How a process of the server would be confined at a level. Raises what `protection.plan` raises.

        `reached`: in place of the server's own folders; `add`: mechanisms beside the image's; `reader`: of the store."""
        binds = [Bind(source=path) for path in (str(version.folder), *versions.interface_folders())]
        if reached is None:
            reached = tuple(Bind(source=str(folder), writable=True) for folder in folders(self._node, server))
        binds += reached
        spec, limits = server.spec, self._allotments.of(server, reader=reader)
        subject = Subject(
            name=server.name,
            uid=self._node.uids.of(server.name),
            binds=tuple(binds),
            grants=spec.grants,
            limits=(RESIDENT,) if server.keeps_secrets else (),
            refusal="kill" if spec.refusal == "kill" else "notify",
            start=server.start,
            io_priority=None if limits == Limits() or io.refused(limits) else io_priority(limits),
        )
        return plan_protection(
            level,
            subject,
            self._node.abilities,
            add=(*spec.add, *add),
            drop=spec.drop,
            unfit=UNFIT_FOR_STORE if server.name == STORE else {},
            degrade=spec.degrade,
        )

    async def launch(
        self, server: Server, version: Version, plan: Plan, attend: Attend, *, beside: bool = False, reader: str = "",
        place: str = "",
    ) -> Serving:  # fmt: skip
        """Start a process and tell it everything up to its first step; it answers `Ready` or `Failed` in time.

        `attend` sees to its end. `beside`: another process of the server runs, so this one gets capabilities and channels
        of its own, and those it is to serve later. `reader`: a reader of the store, by that name, in the group `place`; its
        channels come once it serves. Raises `CannotConfine`, `ZygoteDied`, `QuotaExceeded`, `OSError`.
        """
        node = self._node
        confinement = plan.require()
        recording = server.spec.recording
        cost = PROCESS if recording is None else {**PROCESS, **buffer(recording.size)}
        node.ledger.charge_all(server.spec.account, cost)
        try:
            with ExitStack() as made:
                ours, theirs, outputs = _ends(made)
                tape = None if recording is None else Tape(server.name, recording.size)
                if tape is not None:
                    made.callback(tape.close)
                serving = Serving(node.number(), server.name, server.spec.account, reader=reader, tape=tape)
                made.pop_all()
        except BaseException:
            node.ledger.release_all(server.spec.account, cost)
            raise
        if not reader:
            server.latest = serving.number
        serving.cost = cost
        serving.started = node.now()
        serving.version, serving.plan = version.hash, plan
        mark = f"{node.boot}-{serving.number}"
        undo = intents.EndProcess(server=serving.serves, process=serving.number, mark=mark)
        intent = intents.intend(node.boot, serving.number, undo, node.now())
        entrances: list[int] = []
        try:
            intended = node.store.batch(f"intent to start {server.name}").put(intent)
            await node.store.commit_or_keep(intended.changes())
            reach("start: intended")
            group = node.group(server, place)
            if server.keeps_secrets:
                said = tuple(group.keep_from_swap())
                server.swappable = said if devices() and not may_lock() else ()
            serving.starved_before = group.killed_for_memory()
            entrances = group.open()
            descriptors = {1: outputs[0][1], 2: outputs[1][1], CONTROL_DESCRIPTOR: theirs.fileno()}
            if server.name == STORE and not reader:
                descriptors[LOCK_DESCRIPTOR] = node.lock
            serving.process = process = await node.forge.spawn(
                confinement,
                descriptors=descriptors,
                arguments=(CONTROL_DESCRIPTOR,),
                environment={**ENVIRONMENT, "ATOLL_PROCESS": mark},
                groups=entrances,
            )
        except BaseException:
            ours.close()
            serving.close()
            node.ledger.release_all(serving.account, serving.cost)
            for output, _ in outputs:
                os.close(output)
            failed = intents.settle(node.store.batch("not started"), intent, intents.FAILED)
            node.store.later(failed, keep=True)
            raise
        finally:
            theirs.close()
            for _, given in outputs:
                os.close(given)
            for descriptor in entrances:
                os.close(descriptor)
        node.parties[serving.number] = serving
        reach("start: spawned")
        # Before its end can be told, and whatever comes of it: there is a process now.
        started = node.store.batch("started").put(process_row(node, server, serving))
        node.store.later(intents.settle(started, intent), keep=True)
        for level, (output, _) in zip(("info", "error"), outputs, strict=True):
            node.soon(self._logs.read_output, server.name, process.pid, level, output)
        node.soon(attend, server, serving)
        connection = Connection(ours)
        try:
            group.joined(process.pid)
            if server.name == STORE and not reader:
                # Every commit of the node waits for it, also for it to wake beside those that compute.
                for sentence in group.short_turns(process.pid):
                    self._logs.line(
                        server.name,
                        0,
                        "warning",
                        f"commits wait for whoever computes beside them: {sentence}",
                    )
            await node.watching.watch(serving.number, process)
            self._introduce(server, serving, connection, version, beside)
        except BaseException as error:
            connection.close()
            serving.silent.set()  # it was told nothing, so it says nothing
            why = "its start was given up" if isinstance(error, trio.Cancelled) else str(error)
            await end_now(serving, f"it was not started: {why}")
            raise
        node.soon(self._conversation.hear, serving)
        return serving

    def _introduce(
        self, server: Server, serving: Serving, connection: Connection, version: Version, beside: bool
    ) -> None:
        """`Start`, then the channels and table segments that it announces."""
        node = self._node
        capabilities = self._capabilities(server, serving, beside)
        port = self._authority.admit(kernel_capability(node, server, serving), serving)
        told = self._needs.told(server, serving, capabilities)
        table = self._authority.table(server.name)
        calls = node.channels.of_client(serving)
        served = [] if beside else node.channels.of_server(serving.serves)
        rights = {
            name: node.tree.rights_map(server.name, name) for name in self._authority.interfaces[server.name]
        }
        start = control.Start(
            server=server.name,
            package=version.package,
            folder=str(version.folder),
            version=version.hash,
            boot=node.boot,
            process=serving.number,
            needs=told,
            rights=rights,
            kernel=port,
            handover=beside,
            channels=len(calls) + len(served),
            segments=len(table.segments),
            recording=server.spec.recording,
        )
        listening = [end.fileno() for end in sockets(server)]
        own = (serving.notice.memory.descriptor, serving.status.memory.descriptor, *listening)
        if serving.tape is not None:
            own += (serving.tape.memory.descriptor,)
        serving.connection = connection
        connection.send(start, own)
        for channel in calls:
            connection.send(*channel.opening(as_client=True))
        # Before the channels: a message that names one of them may wait there, and the process be faster than this is.
        self._grants.hand_over(serving, served)
        for channel in served:
            self._authority.give(channel, serving)
        for index, segment in enumerate(table.segments):
            connection.send(control.AddSegment(index=index), (segment.descriptor,))
        bound = {capability.id for capability in capabilities.values()}
        if not beside:
            for granted in node.tree.held_by(server.name):
                if granted.id not in bound and self._authority.stands(granted):
                    self._authority.deliver_again(granted, serving)

    def _capabilities(self, server: Server, serving: Serving, beside: bool) -> dict[str, Capability]:
        """By need, the capability that this process uses: the lasting one, or beside another process a twin of it."""
        node = self._node
        found = {}
        for need in server.needs:
            id = node.bound.get((server.name, need))
            if id is None:
                continue
            lasting = node.tree.get(id)
            if beside:
                twin = node.tree.derive(
                    lasting.id, by=server.name, rights=lasting.rights, account=server.spec.account
                )
                serving.session.add(twin.id)
                found[need] = twin
            else:
                found[need] = lasting
        return found


def _ends(made: ExitStack) -> tuple[socket.socket, socket.socket, list[tuple[int, int]]]:
    """Both ends of a control socket and of what a process writes, which the stack closes if it comes to nothing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.callback(ours.close)
    made.callback(theirs.close)
    outputs = []
    for _ in range(2):
        output = os.pipe2(os.O_CLOEXEC)
        outputs.append(output)
        for end in output:
            made.callback(os.close, end)
    return ours, theirs, outputs


async def until_ready(server: Server, serving: Serving, within: float = READY_WITHIN) -> control.Ready:
    """The process's next `Ready`. Raises `StartFailed` with its reason, after it has ended."""
    try:
        with trio.move_on_after(within):
            await serving.ready.wait()
    except BaseException:
        await end_now(serving, "nobody waits for it to start any more")
        raise
    serving.ready = trio.Event()
    offered, serving.offered = serving.offered, None
    if offered is not None and serving.failed is None and not serving.gone:
        return offered
    said, hung = serving.failed, not serving.gone
    await end_now(serving, "it could not start")
    if said is not None:
        raise StartFailed(server=server.name, step=said.step, reason=said.sentence)
    how = serving.process.exit if serving.process is not None else None
    reason = f"no answer in {within:g} s" if hung else f"its process {how}"
    raise StartFailed(server=server.name, step="start", reason=reason)


def kernel_capability(node: Node, server: Server, serving: Serving) -> Capability:
    """What a process may ask of the kernel: `serve`, badged with its number."""
    root = node.tree.root(KERNEL, "Kernel")
    made = node.tree.mint(
        root.id,
        by=KERNEL,
        to=server.name,
        badge=serving.number,
        rights={"serve"},
        account=server.spec.account,
    )
    serving.session.add(made.id)
    return made
