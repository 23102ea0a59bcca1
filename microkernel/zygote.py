"""The fork server: a process with the interpreter and the SDK loaded, of which a confined server is a clone.

The kernel executes it once a boot (`python -m atoll.microkernel.zygote`) and asks for children over a
socket: one `Spawn` a packet, with descriptors. It has one thread, and everything it has made by then is
frozen out of the garbage collector's sight, so that children share its pages.

A child is a raw clone between CPython's fork hooks: `CLONE_PARENT` makes the kernel its parent, which so
gets its exit status and is whom it dies with; the namespaces are asked for in the same call, since a pid
namespace cannot be entered later. What happens in the child until Python runs again is the C core's. It
reports on a socket of its own, straight to the kernel: a child that hangs on a dead file system holds up
nobody.

It is also what outlives a killed kernel, by a moment: children die with the kernel by the parent-death signal, which a
child can switch off and its own children never have. So when the kernel's end of the socket closes without a farewell,
the zygote kills what is left in the node's control groups and what bears the node's marker, and then ends.

`start = "exec"`: the clone executes the interpreter afresh (`--exec`), which confines itself by the same
plan before it imports the server. It costs an interpreter's start and gives an address layout and a hash
seed of its own.
"""

import array
import ctypes
import gc
import importlib
import os
import select
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import msgspec
from msgspec import Struct

from atoll.microkernel.protection.confinement import Confinement
from atoll.microkernel.protection.layout import Layout, ffi, lib
from atoll.microkernel.remains import sweep

PACKET_LIMIT = 192 * 1024
DESCRIPTORS_MOST = 60
SOCKET, GUARDIAN = 3, 4
"""The numbers under which the kernel's socket and the pidfd of the kernel are handed to the zygote."""
FAREWELL = b"farewell"
"""The kernel's last packet of a node that ends in order: it has ended every server itself."""
END_OF_GROUPS = "--"
""""Between the folders of the node's control groups and the modules on the zygote's command line."""


class Spawn(Struct, frozen=True, kw_only=True, tag=True):
    """One child. Descriptors ride along: the status socket, `groups` entrances of control groups, then one a
    target."""

    number: int
    confinement: Confinement
    entry: str
    """`module:function`, called with `arguments` in the confined child; its return, or SystemExit, ends the
    child."""
    arguments: tuple[int | str, ...] = ()
    path: tuple[str, ...] = ()
    """Folders put in front of the import path."""
    environment: dict[str, str] = {}
    """All of it: nothing is inherited."""
    groups: int = 0
    born: bool = True
    """Whether it is made in its group of version 2, if that goes; else it moves there itself."""
    targets: tuple[int, ...] = ()
    """The numbers that the descriptors get, ascending; 0 to 2 are the zygote's unless named."""
    marker: str = ""
    """Stands on the command line of a fresh start, as it does on the zygote's, so that survivors are
    known."""


class Spawned(Struct, frozen=True, kw_only=True, tag=True):
    """The child exists; its pidfd rides along. Whether it could be confined, its status tells."""

    number: int
    pid: int


class NotSpawned(Struct, frozen=True, kw_only=True, tag=True):
    number: int
    error: int


class Launch(Struct, frozen=True, kw_only=True):
    """What a fresh interpreter is told, in a memfd: the request, and where status and guardian are."""

    spawn: Spawn
    status: int
    guardian: int


Reply = Spawned | NotSpawned
encode = msgspec.msgpack.Encoder().encode
to_zygote = msgspec.msgpack.Decoder(Spawn)
from_zygote = msgspec.msgpack.Decoder(Reply)
to_launcher = msgspec.msgpack.Decoder(Launch)


def receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors; an empty packet means that the peer is gone."""
    room = socket.CMSG_SPACE((DESCRIPTORS_MOST + 4) * 4)
    packet, control, _, _ = peer.recvmsg(PACKET_LIMIT, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % 4])
    return packet, descriptors.tolist()


def send(peer: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    peer.sendmsg([packet], rights)


def run(spawn: Spawn) -> NoReturn:
    """Be the child: call the entry, then end, without unwinding what the zygote had on its stack."""
    code = 1
    os.environ.clear()
    os.environ.update(spawn.environment)
    # Inherited, it would keep what a server prints to itself until so much was printed that it fills a buffer.
    sys.stdout = os.fdopen(1, "w", 1, "utf-8", "backslashreplace", closefd=False)
    try:
        sys.path[:0] = spawn.path
        module, _, function = spawn.entry.partition(":")
        getattr(importlib.import_module(module), function)(*spawn.arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody hears it any more
                stream.flush()
        os._exit(code)


class Zygote:
    """The fork server's loop. It owns the socket, the guardian and, while it handles a request, that one's
    descriptors."""

    def __init__(self, kernel: socket.socket, guardian: int) -> None:
        self.kernel = kernel
        self.guardian = guardian

    def serve(self) -> bool:
        """Make children until the kernel closes its end. Whether it said farewell."""
        while True:
            try:
                packet, descriptors = receive(self.kernel)
            except ConnectionResetError:
                packet = b""
            if not packet or packet == FAREWELL:
                return bool(packet)
            spawn = to_zygote.decode(packet)
            pidfd = -1
            try:
                start = self._execute if spawn.confinement.start == "exec" else self._clone
                pid, pidfd = start(spawn, descriptors)
                reply: Reply = (
                    Spawned(number=spawn.number, pid=pid)
                    if pid > 0
                    else NotSpawned(number=spawn.number, error=-pid)
                )
                with suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # it ended meanwhile: the next receive says so
                    send(self.kernel, encode(reply), [pidfd] if pid > 0 else [])
            finally:
                for descriptor in (*descriptors, pidfd):
                    if descriptor >= 0:
                        os.close(descriptor)

    def _clone(self, spawn: Spawn, descriptors: list[int]) -> tuple[int, int]:
        status, groups, given = (
            descriptors[0],
            descriptors[1 : 1 + spawn.groups],
            descriptors[1 + spawn.groups :],
        )
        layout = Layout(
            spawn.confinement,
            status=status,
            guardian=self.guardian,
            groups=groups,
            born=spawn.born,
            descriptors=tuple(zip(given, spawn.targets, strict=True)),
        )
        pidfd = ffi.new("int *", -1)
        ctypes.pythonapi.PyOS_BeforeFork()
        pid: int = lib.atoll_sandbox_spawn(layout.plan, pidfd)
        if pid:
            ctypes.pythonapi.PyOS_AfterFork_Parent()
            return pid, pidfd[0]
        ctypes.pythonapi.PyOS_AfterFork_Child()
        self.kernel.detach()  # its number is closed, or something else by now
        gc.enable()
        run(spawn)

    def _execute(self, spawn: Spawn, descriptors: list[int]) -> tuple[int, int]:
        status, groups, given = (
            descriptors[0],
            descriptors[1 : 1 + spawn.groups],
            descriptors[1 + spawn.groups :],
        )
        above = max((*spawn.targets, 2)) + 1
        launch = Launch(spawn=spawn, status=above + 1, guardian=above + 2)
        memory = os.memfd_create("launch", os.MFD_CLOEXEC)
        try:
            os.write(memory, encode(launch))
            extra = ((memory, above), (status, above + 1), (self.guardian, above + 2))
            layout = Layout(
                spawn.confinement,
                status=status,
                guardian=self.guardian,
                groups=groups,
                born=spawn.born,
                descriptors=(*zip(given, spawn.targets, strict=True), *extra),
            )
            arguments = [
                sys.executable,
                "-P",
                "-m",
                "atoll.microkernel.zygote",
                "--exec",
                str(above),
                spawn.marker,
            ]
            environment = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
            settings = [f"{name}={value}" for name, value in (environment | spawn.environment).items()]
            pidfd = ffi.new("int *", -1)
            pid: int = lib.atoll_sandbox_execute(
                layout.plan, layout.strings(arguments), layout.strings(settings), pidfd
            )
            return pid, pidfd[0]
        finally:
            os.close(memory)


def launch(memory: int) -> NoReturn:
    """A fresh interpreter's way in: read what to be, load the SDK, be confined, run."""
    told = to_launcher.decode(os.pread(memory, os.fstat(memory).st_size, 0))
    os.close(memory)
    entry = told.spawn.entry.partition(":")[0]
    preload([entry] if entry.startswith("atoll.") else [])  # a server's own module is loaded confined
    layout = Layout(
        told.spawn.confinement, status=told.status, guardian=told.guardian, descriptors=None, ids_done=True
    )
    lib.atoll_sandbox_enter(layout.plan)
    os.close(told.guardian)
    run(told.spawn)


def preload(modules: Sequence[str]) -> None:
    """Import what every server needs, so that its pages are shared and its files need not be reachable
    later. `module:function` is called, too."""
    for each in ("trio", "msgspec", *modules):
        module, _, function = each.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()


def main(arguments: Sequence[str]) -> None:
    """`--exec MEMFD MARKER`, or `MARKER GROUP... -- MODULE...` with the kernel's socket and pidfd as descriptors 3 and
    4."""
    if arguments[0] == "--exec":
        launch(int(arguments[1]))
    if select.select([GUARDIAN], [], [], 0)[0]:
        sys.exit("the zygote was started without a kernel: it is the kernel that starts it")
    os.set_inheritable(SOCKET, False)
    os.set_inheritable(GUARDIAN, False)
    end = arguments.index(END_OF_GROUPS)
    groups, modules = arguments[1:end], arguments[end + 1 :]
    preload(modules)
    gc.collect()
    gc.freeze()
    gc.disable()
    if not Zygote(socket.socket(fileno=SOCKET), GUARDIAN).serve():
        sweep(groups, arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
