"""From a server's spec to a process of it that has been told what it is: confinement, control socket, needs, channels."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from atoll.ipc.system import control

from . import intents, needs, versions
from .accounts import PROCESS
from .capabilities import Capability
from .connections import Connection
from .failpoints import reach
from .image_check import STORE
from .needs import LOCK_DESCRIPTOR
from .parties import KERNEL, Party, Serving
from .protection import Bind, Plan, Subject
from .protection import plan as plan_protection
from .slices import Limits, io, io_priority

if TYPE_CHECKING:
    from .node import Node
    from .supervisor import Server
    from .versions import Version

CONTROL_DESCRIPTOR = 3
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
UNFIT_FOR_STORE = {
    "processes": "the store's processes share the host's numbers: by them its database counts who reads, and takes two "
    "of one number for one process"
}


def protection(
    node: Node,
    server: Server,
    level: str,
    version: Version,
    *,
    reached: tuple[Bind, ...] | None = None,
    add: tuple[str, ...] = (),
) -> Plan:
    """How a process of the server would be confined at a level. Raises what `protection.plan` raises.

    `reached`: in place of the server's own folders; `add`: mechanisms beside the image's."""
    binds = [Bind(source=path) for path in (str(version.folder), *versions.interface_folders())]
    if reached is None:
        reached = tuple(Bind(source=str(folder), writable=True) for folder in needs.folders(node, server))
    binds += reached
    spec, limits = server.spec, node.allotments.of(server)
    subject = Subject(
        name=server.name,
        uid=node.uids.of(server.name),
        binds=tuple(binds),
        grants=spec.grants,
        refusal="kill" if spec.refusal == "kill" else "notify",
        start=server.start,
        io_priority=None if limits == Limits() or io.refused(limits) else io_priority(limits),
    )
    return plan_protection(
        level,
        subject,
        node.abilities,
        add=(*spec.add, *add),
        drop=spec.drop,
        unfit=UNFIT_FOR_STORE if server.name == STORE else {},
        degrade=spec.degrade,
    )


async def launch(
    node: Node, server: Server, version: Version, plan: Plan, *, beside: bool = False, reader: str = ""
) -> Serving:
    """Start a process and tell it everything up to its first step; it answers `Ready` or `Failed` in time.

    `beside`: another process of the server runs, so this one gets capabilities and channels of its own, and those it
    is to serve later. `reader`: a reader of the store, by that name; its channels come once it serves. Raises
    `CannotConfine`, `ZygoteDied`, `QuotaExceeded`, `OSError`.
    """
    confinement = plan.require()
    node.ledger.charge_all(server.spec.account, PROCESS)
    try:
        serving = Serving(node.number(), server.name, server.spec.account, reader=reader)
    except BaseException:
        node.ledger.release_all(server.spec.account, PROCESS)
        raise
    serving.cost = PROCESS
    serving.started = node.now()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outputs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    mark = f"{node.boot}-{serving.number}"
    undo = intents.EndProcess(server=server.name, process=serving.number, mark=mark)
    intent = intents.intend(node.boot, serving.number, undo, node.now())
    procs: list[int] = []
    try:
        intended = node.store.batch(f"intent to start {server.name}").put(intent)
        await node.store.commit_or_keep(intended.changes())
        reach("start: intended")
        group = server.group(node)
        procs = group.open_procs()
        descriptors = {1: outputs[0][1], 2: outputs[1][1], CONTROL_DESCRIPTOR: theirs.fileno()}
        if server.name == STORE and not reader:
            descriptors[LOCK_DESCRIPTOR] = node.lock
        serving.process = process = await node.forge.spawn(
            confinement,
            descriptors=descriptors,
            arguments=(CONTROL_DESCRIPTOR,),
            environment={**ENVIRONMENT, "ATOLL_PROCESS": mark},
            groups=procs,
        )
    except BaseException:
        ours.close()
        serving.close()
        node.ledger.release_all(serving.account, serving.cost)
        for output, _ in outputs:
            os.close(output)
        node.store.later(intents.settle(node.store.batch("not started"), intent, intents.FAILED))
        raise
    finally:
        theirs.close()
        for _, given in outputs:
            os.close(given)
        for descriptor in procs:
            os.close(descriptor)
    if hasattr(group, "add"):
        group.add(process.pid)
    node.parties[serving.number] = serving
    reach("start: spawned")
    for level, (output, _) in zip(("info", "error"), outputs, strict=True):
        node.soon(node.logs.read_output, server.name, process.pid, level, output)
    node.soon(node.readers.attend if reader else node.supervisor.attend, server, serving)
    connection = Connection(ours)
    try:
        await node.watching.watch(serving.number, process)
        _introduce(node, server, serving, connection, version, beside)
    except BaseException as error:
        connection.close()
        serving.silent.set()  # it was told nothing, so it says nothing
        await node.supervisor.end_now(serving, f"it was not started: {error}")
        raise
    node.soon(node.supervisor.converse, serving)
    started = node.supervisor.process_row(server, serving)
    node.store.later(intents.settle(node.store.batch("started"), intent).put(started))
    return serving


def _introduce(
    node: Node, server: Server, serving: Serving, connection: Connection, version: Version, beside: bool
) -> None:
    """`Start`, then the channels and table segments that it announces."""
    capabilities = _capabilities(node, server, serving, beside)
    port = node.authority.admit(kernel_capability(node, server, serving), serving)
    told = needs.told(node, server, serving, capabilities)
    table = node.authority.table(server.name)
    served = [] if beside else node.channels.of_server(serving.serves)
    rights = {
        name: node.tree.rights_map(server.name, name) for name in node.authority.interfaces[server.name]
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
        channels=len(serving.calls) + len(served),
        segments=len(table.segments),
    )
    listening = [end.fileno() for end in needs.sockets(server)]
    own = (serving.notice.memory.descriptor, serving.status.memory.descriptor, *listening)
    serving.connection = connection
    connection.send(start, own)
    for channel in serving.calls.values():
        connection.send(*channel.opening(as_client=True))
    for channel in served:
        node.authority.give(channel, serving)
    for index, segment in enumerate(table.segments):
        connection.send(control.AddSegment(index=index), (segment.descriptor,))
    node.grants.hand_over(serving, served)
    bound = {capability.id for capability in capabilities.values()}
    for granted in node.tree.held_by(server.name):
        if granted.lasting and granted.parent and granted.id not in bound and not beside:
            deliver(node, granted, serving)


def deliver(node: Node, capability: Capability, party: Party, channel: int = 0) -> None:
    """Put a capability into a process's hands; its number is the token, which messages of `channel` may name."""
    port = node.authority.admit(capability, party)
    party.send(control.Deliver(token=capability.id, port=port, channel=channel))


def _capabilities(node: Node, server: Server, serving: Serving, beside: bool) -> dict[str, Capability]:
    """By need, the capability that this process uses: the lasting one, or beside another process a twin of it."""
    found = {}
    for need in server.spec.needs:
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
