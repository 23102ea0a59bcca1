"""What every host of the suite gives a test: a kernel's mechanisms, and what a kernel does with them."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import trio

from atoll.ipc.system import control
from atoll.microkernel.connections import Connection
from atoll.microkernel.mechanisms import Doors, Group, Mechanisms, Process, Slices
from atoll.microkernel.notices import Notice, Status
from atoll.microkernel.protection import Confinement

M = TypeVar("M", bound=control.Message)

PACKAGES = Path(__file__).parent / "packages"
CONTROL = 3
"""The number under which a process usually finds its control socket."""
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}


class Inside(NamedTuple):
    """What a program beside the kernel is given: it may be a kernel itself, and it may connect to one."""

    doors: Doors
    """Its own."""
    end: socket.socket
    """To the test."""
    bear: Callable[[socket.socket], object]
    """Done with a socket before it connects to a kernel of this host."""


Main = Callable[[Inside], Awaitable[None]]


class Program(Protocol):
    """A process that runs a function of `programs`, as the test sees it."""

    pid: int
    end: socket.socket

    def kill(self) -> None: ...

    async def ended(self) -> None: ...


class Host(Protocol):
    """What a test's body runs over, as a kernel does."""

    mechanisms: Mechanisms
    hopeless: Mapping[str, Any]
    """Given to `spawn`, no process can be made."""

    boot_again: Callable[[], Slices]
    """The groups of the node as another boot of it finds them."""

    def package(self, name: str) -> Path:
        """The folder of one of PACKAGES, where processes can read it."""

    def confinement(self, name: str) -> Confinement:
        """Of a process at the lowest level."""

    def program(self, main: Main) -> AbstractAsyncContextManager[Program]: ...


Body = Callable[[Host], Awaitable[None]]
Run = Callable[[Body], None]
"""Runs a body over one kind of host, to its end."""


def as_kernel(body: Body) -> Callable[[Run], None]:
    """A test of this body, over each kind of host."""

    def test(run: Run) -> None:
        run(body)

    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__  # type: ignore[attr-defined]
    return test


class Started:
    """A process of a server, and the kernel's end of its control socket."""

    def __init__(self, process: Process, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    async def hear(self, kind: type[M]) -> M:
        """The next thing that it says, which is to be this."""
        packet = await self.connection.receive()
        assert packet is not None, f"it {await self.process.wait()} before it said {kind.__name__}"
        said, descriptors = packet
        assert isinstance(said, kind), said
        assert not descriptors
        return said

    async def answers(self, number: int) -> None:
        """It is asked for a sign of life, and gives it."""
        self.connection.send(control.Ping(number=number))
        assert (await self.hear(control.Pong)).number == number

    def has_spoken(self) -> bool:
        """Whether something it said, or the end of what it says, is there to be heard."""
        return readable(self.connection._end.fileno())


def readable(descriptor: int) -> bool:
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    return bool(look.poll(0))


@asynccontextmanager
async def started(
    host: Host,
    package: str = "patient",
    *,
    group: Group | None = None,
    number: int = CONTROL,
    more: Mapping[int, int] = {},
) -> AsyncIterator[Started]:
    """A process that was told what it is, as the kernel tells it. Whatever becomes of it, it is gone afterwards.

    `number`: of its control socket; `more`: further descriptors."""
    folder = host.package(package)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)
    notice, status = Notice(package), Status(package)
    joined = [] if group is None else group.open()
    try:
        process = await host.mechanisms.spawner.spawn(
            host.confinement(package),
            descriptors={number: theirs.fileno(), **more},
            arguments=(number,),
            environment=ENVIRONMENT,
            groups=joined,
        )
    except BaseException:
        connection.close()
        raise
    finally:
        theirs.close()
        for descriptor in joined:
            os.close(descriptor)
    try:
        if group is not None:
            group.joined(process.pid)
        connection.send(
            control.Start(
                server=package, package=package, folder=str(folder.parent), version="1", boot=1, process=1,
                needs={}, rights={}, kernel=None, segments=0,
            ),
            (notice.memory.descriptor, status.memory.descriptor),
        )  # fmt: skip
        yield Started(process, connection)
    finally:
        with trio.CancelScope(shield=True):
            if process.exit is None:
                process.kill()
                if group is not None:
                    await group.end()  # the frozen need not hear a signal
            await process.wait()
        process.close()
        connection.close()
        notice.close()
        status.close()
