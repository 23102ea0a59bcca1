"""The attach socket: how programs outside the node get in, and as what.

Who connects is learned from the socket, never from what is said there (`peers`). A server of the node is turned away,
whatever its uid: it must not gain by going out and coming back in. The first `[[attach]]` of the image that fits decides;
root and whoever booted are operators.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import trio

from atoll.ipc.errors import AtollError
from atoll.ipc.naming import badge_number
from atoll.ipc.system import control
from atoll.ipc.system.records import AttachmentRow

from .accounts import ATTACHMENT
from .authority import Authority
from .capabilities import Capability
from .connections import Connection, close_all
from .events import Events
from .image import Attach, May, MayRead
from .image_check import STORE, STORE_INTERFACE
from .node import Node
from .parties import KERNEL, Attached, Serving
from .peers import Peer, Refused

HELLO_WITHIN = 5.0
"""Seconds for each packet up to `Welcome`."""
BACKLOG = 64
NAME_MOST = 256
OPERATORS = "operators"
"""The account of those who attach as operators without an entry of the image; the image may set its limits."""
GREETED_MOST = 32
"""Programs of one user that may be on their way in at once: each holds descriptors of the kernel's before it is known."""
NO_DESCRIPTORS_PAUSE = 0.5


class _Left(Exception):
    """The program went before it said anything: it only looked whether a node answers."""


class Gate:
    """The attach socket of a node."""

    def __init__(self, node: Node, events: Events, authority: Authority) -> None:
        self._node = node
        self._events = events
        self._authority = authority
        self._path = node.place.socket
        self._listening: socket.socket | None = None
        self._booter = os.geteuid()
        self._greeted: Counter[int] = Counter()
        """By user id, programs that are on their way in."""

    def open(self) -> None:
        """Make the socket. An old one is a dead node's: we hold the lock."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        end.setblocking(False)
        bind_long(end, self._path)
        os.chmod(self._path, 0o666 if self._node.image.attach else 0o600)
        end.listen(BACKLOG)
        self._listening = end

    async def serve(self) -> None:
        """Take who comes, until the node ends."""
        assert self._listening is not None
        while True:
            try:
                await trio.lowlevel.wait_readable(self._listening)
            except trio.ClosedResourceError:
                return
            try:
                end, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptors left: others must close some first
                self._events.event("attach", "kernel", f"a program could not attach: {error}")
                await trio.sleep(NO_DESCRIPTORS_PAUSE)
                continue
            self._node.soon(self._welcome, end)

    def close(self) -> None:
        if self._listening is not None:
            trio.lowlevel.notify_closing(self._listening)  # its number is another's from now on
            self._listening.close()
            with suppress(FileNotFoundError):
                self._path.unlink()

    # one program --------------------------------------------------------------------------------------------

    async def _welcome(self, end: socket.socket) -> None:
        connection = Connection(end)
        who = ""
        try:
            peer = self._node.doors.peer(end)
            try:
                who = f"uid {peer.uid}"
                party = await self._let_in(peer, connection)
                try:
                    await self._converse(party, connection, peer)
                finally:
                    self._leave(party)
            finally:
                peer.close()
        except _Left:
            pass  # nobody is there to be told, and nothing was refused
        except Refused as refusal:
            self._events.refuse(refusal.who or who or "attach", "attach", str(refusal))
            connection.send(control.Unwelcome(sentence=str(refusal)))
        except (AtollError, OSError) as error:
            connection.send(control.Unwelcome(sentence=f"the node cannot take you in now: {error}"))
        finally:
            connection.close()

    async def _let_in(self, peer: Peer, connection: Connection) -> Attached:
        """Up to `Welcome`. Raises `Refused`, and whatever keeps the kernel from making what it needs."""
        if self._greeted[peer.uid] >= GREETED_MOST:
            raise Refused(f"{GREETED_MOST} programs of user id {peer.uid} are on their way in already")
        self._greeted[peer.uid] += 1
        try:
            entry = self._admitted(peer)
            hello = await self._hello(connection)
            if not peer.certain:
                await self._prove(peer, connection)
        finally:
            self._greeted[peer.uid] -= 1
        return self._enter(peer, entry, connection, hello)

    async def _hello(self, connection: Connection) -> control.Hello:
        with trio.move_on_after(HELLO_WITHIN):
            packet = await connection.receive()
            if packet is None:
                raise _Left
            message, descriptors = packet
            close_all(descriptors)
            if isinstance(message, control.Hello) and not descriptors:
                return message
        raise Refused("the program that connected did not say Hello")

    async def _prove(self, peer: Peer, connection: Connection) -> None:
        """Where the host does not say which process connected, only what number it had: that number may be another
        process's by now, and what was read of it another's, too. So it sends a fresh challenge back: the host says
        which process sent it, and if the one that we hold lives after that, it was that one all the time."""
        challenge = self._node.chance.token(16)
        connection.ask_sender()
        connection.send(control.Prove(challenge=challenge))
        with trio.move_on_after(HELLO_WITHIN):
            packet = await connection.receive()
            if packet is not None:
                close_all(packet[1])
            if (
                packet == (control.Proof(challenge=challenge), [])
                and connection.sender == peer.pid
                and peer.lives()
            ):
                return
        raise Refused("the program that connected did not show that it is still the same process")

    def _admitted(self, peer: Peer) -> Attach | None:
        """The image's entry for it; None: an operator. Raises `Refused`."""
        node = self._node
        for party in node.parties.values():
            process = party.process if isinstance(party, Serving) else None
            if process is not None and process.pid in peer.ancestors:
                raise Refused(
                    f"a process of server {party.holder!r} may not attach: it calls by its needs",
                    party.holder,
                )
        place = peer.cgroup.partition(f"/atoll/{node.place.group}/")[2].partition("\n")[0]
        if place:
            raise Refused(
                "a process in a control group of the node's servers may not attach: it calls by its needs",
                next((name for name in node.servers if place.endswith(f"/{name}")), ""),
            )
        owner = node.uids.owner(peer.uid)
        if owner is not None:
            raise Refused(f"user id {peer.uid} is a server's: servers may not attach", owner)
        if peer.uid in (0, self._booter):
            return None
        for entry in node.image.attach:
            if entry.any or (entry.uid is not None and entry.uid.first <= peer.uid <= entry.uid.last):
                return entry
            if entry.group and _in_group(peer, entry.group):
                return entry
        raise Refused(f"user id {peer.uid} may not attach: the image names no [[attach]] that fits")

    def _enter(
        self, peer: Peer, entry: Attach | None, connection: Connection, hello: control.Hello
    ) -> Attached:
        node = self._node
        account = OPERATORS if entry is None else entry.account or node.image.node.account
        node.ledger.charge_all(account, ATTACHMENT)
        try:
            party = Attached(node.number(), account, peer)
        except BaseException:
            node.ledger.release_all(account, ATTACHMENT)
            raise
        party.cost = ATTACHMENT
        party.operator = entry is None or entry.operator
        party.since = node.now()
        party.program = party.program or hello.name[:NAME_MOST]
        party.rights = frozenset({"observe", "operate", "serve"} if party.operator else {"serve"})
        node.parties[party.number] = party
        try:
            root = node.tree.root(KERNEL, "Kernel")
            made = [
                node.tree.mint(
                    root.id,
                    by=KERNEL,
                    to=party.holder,
                    badge=party.number,
                    rights=party.rights,
                    account=account,
                )
            ]
            port = self._authority.admit(made[0], party)
            given = []
            for may in () if entry is None else entry.may:
                capability = self._may(party, may, account)
                made.append(capability)
                given.append(
                    control.Given(
                        server=capability.server,
                        interface=capability.interface,
                        port=self._authority.admit(capability, party),
                        keyspace=may.keyspace if isinstance(may, MayRead) else "",
                    )
                )
            party.session.update(capability.id for capability in made)
            self._tell(party, connection, port, tuple(given))
        except BaseException:
            self._leave(party)
            raise
        self._events.capabilities(made, None)
        node.store.later(node.store.batch("attach").put(self._row(party)))
        return party

    def _tell(
        self, party: Attached, connection: Connection, port: control.Port, given: tuple[control.Given, ...]
    ) -> None:
        """`Welcome`, and the channels that it announces. Raises `OSError`, `PeerMisbehaved`."""
        node = self._node
        calls = node.channels.of_client(party)
        kernel = node.doors.own()
        try:
            party.connection = connection
            connection.send(
                control.Welcome(
                    node=node.place.name, folder=str(node.place.folder), boot=node.boot, attachment=party.number,
                    operator=party.operator, port=port, given=given, channels=len(calls),
                ),
                (party.notice.memory.descriptor, kernel),
            )  # fmt: skip
        finally:
            os.close(kernel)
        for channel in calls:
            connection.send(*channel.opening(as_client=True))

    def _may(self, party: Attached, may: May | MayRead, account: str) -> Capability:
        node = self._node
        if isinstance(may, MayRead):
            server, interface, badge = STORE, STORE_INTERFACE, node.keyspaces[may.keyspace]
        else:
            server, badge = may.server, badge_number(f"uid {party.uid}")
            interface = may.interface or node.server(server).description.interfaces[0].name
        root = node.tree.root(server, interface)
        return node.tree.mint(
            root.id, by=server, to=party.holder, badge=badge, rights=may.rights, account=account
        )

    async def _converse(self, party: Attached, connection: Connection, peer: Peer) -> None:
        """Until it closes its end, or is dead: a child that it left behind with its end is another program."""
        async with trio.open_nursery() as nursery:

            async def end_with_the_program() -> None:
                while peer.lives():  # that its number is readable may be told of who bore it before
                    await trio.lowlevel.wait_readable(peer.pidfd)
                nursery.cancel_scope.cancel()

            nursery.start_soon(connection.pump)
            nursery.start_soon(end_with_the_program)
            try:
                while (packet := await connection.receive()) is not None:
                    message, descriptors = packet
                    close_all(descriptors)
                    if isinstance(message, control.Misbehaved):
                        self._authority.misbehaved(party.holder, message.channel, message.check)
            except Exception as error:  # no word of a program ends more than its own attachment
                self._events.broke_off(party.holder, error)
            nursery.cancel_scope.cancel()

    def _leave(self, party: Attached) -> None:
        node = self._node
        if party.gone:
            return
        if party.connection is not None and not party.connection.hung_up:
            # Before its channels: a program that finds a doorbell shut, and this open, takes its peer for hostile. For one
            # that detaches it is closed last, which tells it that all was given up.
            party.connection.close()
        session = [held.id for held in node.tree.held_by(party.holder)]
        self._authority.leave(party, session)
        if party.connection is not None:
            node.store.later(node.store.batch("detach").put(self._row(party, node.now())))
        party.close()

    def _row(self, party: Attached, ended: int = 0) -> AttachmentRow:
        return AttachmentRow(
            boot=self._node.boot, attachment=party.number, uid=party.uid, pid=party.pid, program=party.program,
            operator=party.operator, time=party.since, ended=ended,
        )  # fmt: skip


def _in_group(peer: Peer, name: str) -> bool:
    try:
        group = grp.getgrnam(name)
        return (
            group.gr_gid == peer.gid
            or group.gr_gid in peer.groups
            or pwd.getpwuid(peer.uid).pw_name in group.gr_mem
        )
    except KeyError:
        return False


def bind_long(end: socket.socket, path: Path) -> None:
    """Bind to a path of any length: the address itself holds 107 bytes, so it goes by the folder's descriptor."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
