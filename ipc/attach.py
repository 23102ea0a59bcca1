"""Programs outside the node: `with atoll.connect() as node: node.open("counter", Counter).add.now("x")`.

The program attaches over the node's Unix socket. Who it is the kernel reads off that socket; what it may do depends on its
uid. It then holds a capability on the kernel, opens servers by name, and calls them over channels of its own like any other
client: from threads, from trio and from asyncio, with the same proxies.
"""

import contextlib
import mmap
import os
import select
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from atoll.ipc import naming, schema
from atoll.ipc.buffer import Buffer, BufferMode
from atoll.ipc.client import forking
from atoll.ipc.client.channel import ClientChannel
from atoll.ipc.client.outside import Outside
from atoll.ipc.errors import BadRequest, CallerFault, NodeDown, NotAllowed, PeerMisbehaved
from atoll.ipc.interface import Interface
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.deliveries import Deliveries
from atoll.ipc.system import control
from atoll.ipc.system.kernel import Kernel, Opened
from atoll.ipc.system.state import State
from atoll.ipc.untyped import UntypedProxy

I = TypeVar("I", bound=Interface)  # noqa: E741

SOCKET = "attach.sock"
LOCK = "lock"
"""In the folder of every node that was ever booted."""
DETACH_WITHIN = 5.0
"""Seconds that a detaching program waits for a kernel that lives and does not answer."""


def base_folder() -> Path:
    """Where this user's nodes lie: `ATOLL_HOME`, or `/var/lib/atoll` for root, else below the user's state folder."""
    if given := os.environ.get("ATOLL_HOME"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/atoll")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "atoll"


def folder_of(node: str | None) -> Path:
    """The folder of a node named by name or by path. Without a name: `ATOLL_NODE`, else the only node that runs."""
    node = node or os.environ.get("ATOLL_NODE")
    if node:
        return Path(node) if "/" in node else base_folder() / node
    found = running()
    if len(found) == 1:
        return found[0]
    if not found:
        raise NodeDown("")
    names = ", ".join(path.name for path in found)
    raise BadRequest(
        "which node", f"one of {names}, since several run", "none: name it with --node or ATOLL_NODE"
    )


def running() -> list[Path]:
    """The folders of this user's nodes that run."""
    return sorted(path.parent for path in base_folder().glob(f"*/{SOCKET}") if _answers(path))


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            _connect(probe, path.parent)
        except OSError:
            return False
    return True


def _connect(end: socket.socket, folder: Path) -> None:
    """By way of the open folder: an address holds 107 characters, a path more."""
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end.connect(f"/proc/self/fd/{place}/{SOCKET}")
    finally:
        os.close(place)


class Node:
    """An attachment to a node: a context manager, plain or async. Its methods may be called from any thread."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self._lock = threading.RLock()  # a call that ends in here may make the next one
        self._control = ControlSocket(_connected(folder))
        self._channels: dict[int, ClientChannel] = {}
        self._deliveries = Deliveries(self._channels, self._pump, heard=False)
        self._later: list[tuple[control.ToProcess, list[int]]] = []
        forking.watch(self)
        try:
            with contextlib.suppress(NodeDown):  # who is turned away at the door is told so before it speaks
                self._control.send(control.Hello(name=name))
            self._welcome()
        except BaseException:
            self._control.socket.close()
            raise

    def _welcome(self) -> None:
        message, descriptors = self._receive()
        if isinstance(message, control.Prove):
            self._control.send(control.Proof(challenge=message.challenge))
            message, descriptors = self._receive()
        if isinstance(message, control.Unwelcome):
            raise Unwelcome(message.sentence)
        if not isinstance(message, control.Welcome):
            raise PeerMisbehaved("attaching", f"the first packet was {type(message).__name__}")
        notice, self._kernel_process = descriptors
        self._notice = mmap.mmap(notice, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        self._deliveries.notice(self._notice)
        os.close(notice)
        self.welcome = message
        self._host = Outside(self._kernel_process, self._report, self._is_closed)
        for _ in range(message.channels):
            self._act(*self._receive())
        self._deliveries.system_calls(message.port)
        self.kernel: Kernel = self._deliveries.proxy(Kernel, message.port)

    @property
    def name(self) -> str:
        return self.welcome.node

    # opening ----------------------------------------------------------------------------------------------------------

    def open(self, server: str, interface: type[I], rights: list[str] | None = None) -> I:
        """A proxy of a server of the node, by name; without `rights`, with all that the interface knows.

        Raises `NotFound` (no such server), `NotAllowed`, `Incompatible` (with the exact differences), `NodeDown`.
        """
        for given in self.welcome.given:
            if given.server == server and given.interface == interface.__name__:
                return self._deliveries.proxy(interface, given.port)  # type: ignore[no-any-return]
        opened = self.kernel.open.now(server, interface.__name__, rights)
        self._check(interface, opened)
        return self._deliveries.proxy(interface, self._port(opened.token))  # type: ignore[no-any-return]

    def open_untyped(self, server: str, interface: str = "") -> UntypedProxy:
        """A server without its package: calls by method name, checked against the schema that the server serves."""
        opened = self.kernel.open.now(server, interface)
        shape = schema.decode(bytes(opened.described.schema))
        return UntypedProxy(shape, self._deliveries.transport(self._port(opened.token)))

    def keyspace(self, name: str, rights: list[str] | None = None) -> State:
        """The rows of a keyspace, through the store's interface; without `rights`, with all that this program may have.

        Raises `NotFound` (no such keyspace), `NotAllowed`, `NodeDown`.
        """
        given = next((given for given in self.welcome.given if given.keyspace == name), None)
        if given is not None and not self.welcome.operator:
            if missing := set(rights or ()) - set(given.port.rights):
                raise NotAllowed(f"keyspace {name}", ", ".join(sorted(missing)), given.port.rights)
            return self._deliveries.proxy(State, given.port)  # type: ignore[no-any-return]
        granted = self.kernel.keyspace.now(name, rights)
        return self._deliveries.proxy(State, self._port(granted.token))  # type: ignore[no-any-return]

    def buffer(self, size: int, mode: BufferMode = "writable") -> Buffer:
        """Memory that can be passed in messages without a copy, charged to this attachment's account. `readonly`: only this
        program writes it, and those it is passed to see what it writes."""
        made = self.kernel.buffer.now(size, mode)
        found = self._deliveries.buffer(made.token)
        if found is None:
            raise PeerMisbehaved("the kernel", "a buffer was made and not delivered")
        return found

    def _check(self, interface: type[Interface], opened: Opened) -> None:
        wanted = schema.described(interface)
        if wanted.fingerprint != opened.described.fingerprint:
            schema.check(schema.describe(interface), schema.decode(bytes(opened.described.schema)))

    def _port(self, token: int) -> control.Port:
        port = self._deliveries.port(token)
        if port is None:
            raise PeerMisbehaved("the kernel", "a capability was granted and not delivered")
        return port

    # the control socket -----------------------------------------------------------------------------------------------

    def _receive(self) -> tuple[control.ToProcess, list[int]]:
        while (packet := self._control.receive_nowait()) is None:
            self._control.wait_for(select.POLLIN)
        return packet

    def _pump(self) -> None:
        with self._lock:
            # It is closed where this program has detached, and in a fork: nothing more is said there.
            while (
                self._control.socket.fileno() >= 0 and (packet := self._control.receive_nowait()) is not None
            ):
                self._act(*packet)

    def _act(self, message: control.ToProcess, descriptors: list[int]) -> None:
        match message:
            case control.OpenChannel():
                memory, doorbell = descriptors
                channel = ClientChannel(message, memory, doorbell, self._notice, self._host)
                os.close(memory)
                self._channels[message.channel] = channel
                self._host.add(channel)
            case control.CloseChannel(channel=number):
                closed = self._channels.pop(number, None)
                if closed is not None:
                    self._host.remove(number)
                    closed.retire()
                self._deliveries.closed(number)
            case control.ReadAt():
                self._deliveries.read_at(message)
            case control.Deliver():
                self._deliveries.deliver(message)
            case control.DeliverBuffer():
                self._deliveries.deliver_buffer(message, descriptors[0])
            case control.WithdrawBuffer():
                self._deliveries.withdraw(message)
            case _:
                raise PeerMisbehaved("the kernel", f"an unexpected packet: {type(message).__name__}")

    def _report(self, channel: int, check: str) -> None:
        self._control.send(control.Misbehaved(channel=channel, check=check))

    def _is_closed(self, channel: int) -> bool:
        """Whether the kernel has closed a channel. One that ends closes all, and then its end of the control socket."""
        try:
            self._pump()
        except NodeDown:
            for each in list(self._channels.values()):
                each.down()
            return True
        return channel not in self._channels

    def forked(self) -> None:
        """In a fork the attachment is the parent's, and detaching would be, too: only the child's copy is let go."""
        self._control.socket.close()

    # life -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Detach. When this returns the kernel has given up what this attachment held: whoever looks finds it no more. Or
        the kernel is dead, or has stood still for `DETACH_WITHIN`."""
        if self._control.socket.fileno() < 0:
            return
        with self._lock:
            for channel in self._channels.values():
                self._host.remove(channel.number)
                channel.retire()
            self._channels.clear()
        self._deliveries.let_go()
        self._host.close()
        self._control.hang_up(self._kernel_process, DETACH_WITHIN)
        self._control.socket.close()
        os.close(self._kernel_process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Unwelcome(CallerFault):
    """The kernel does not let this program attach; the sentence is the kernel's."""

    number = 9
    sentence: str
    template = "{sentence}"


class NoSuchNode(NodeDown):
    """No node of that name was ever booted here; `known` are those that were."""

    number = 28
    node: str
    nearest: str = ""
    known: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        todo = naming.hint(self.nearest, self.known) or "start one with `atoll boot IMAGE`"
        return f"there is no node {self.node!r}: {todo}"


def _no_such_node(folder: Path) -> NoSuchNode:
    """With this user's nodes, whether they run or not."""
    known = [path.parent.name for path in base_folder().glob(f"*/{LOCK}")]
    name = folder.name if folder.parent == base_folder() else str(folder)
    return NoSuchNode(name, naming.nearest(folder.name, known), naming.some_of(known))


def _connected(folder: Path) -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _connect(end, folder)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        end.close()
        if not folder.is_dir():
            raise _no_such_node(folder) from None
        near = naming.nearest(folder.name, [path.name for path in running()])
        raise NodeDown(f"node {folder.name!r}", near) from None
    except PermissionError:
        end.close()
        raise NotAllowed(f"attaching to node {folder.name!r}", "attach") from None
    return end


def connect(node: str | None = None, *, name: str = "") -> Node:
    """Attach to a node: by name, by the path of its folder, or to the one that runs.

    Raises `NodeDown` if none does, `NotAllowed` if this user may not attach.
    """
    return Node(folder_of(node), name or Path(os.path.realpath("/proc/self/exe")).name)
