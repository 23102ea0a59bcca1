"""What a simulated node is made over: `microkernel.mechanisms`, in a world."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import trio

from atoll.ipc.runtime import launch
from atoll.ipc.runtime.describe import Answer, Asked, describe
from atoll.ipc.serve import Serves
from atoll.ipc.system import control
from atoll.microkernel.mechanisms import Mechanisms
from atoll.microkernel.processes import CannotConfine, Exit
from atoll.microkernel.protection import Host

from .world import Process, World

ABILITIES = Host(
    root=False, uid=os.geteuid(), users="", mounts="", processes="", network="", ipc="", hostname="", landlock=3,
    filters="", notify="", closed=(),
)  # fmt: skip
CONTROL, LISTEN = 3, 3
"""Descriptors that a process of a server, and one that describes a package, are told of."""


class Child:
    """A process as the kernel that started it holds it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self.process = process
        self.name = process.name
        self.pid = process.pid
        self.pidfd = process.pidfd()
        self.exit: Exit | None = None
        self.listener: int | None = None

    async def wait(self) -> Exit:
        while self.exit is None:
            await trio.lowlevel.wait_readable(self.pidfd)
            if not self.process.alive:
                status = self.process.status
                self.exit = Exit(status, signal.SIGKILL if status is None else None)
        return self.exit

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            self._world.kill(self.process)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


Classes = Callable[[str, str, str], type[Serves[Any]]]
"""The class of a package, by its name, its folder and its version."""


class Spawner:
    """Starts simulated processes of servers."""

    def __init__(self, world: World, classes: Classes, intended: Callable[[str], bool]) -> None:
        """`intended`: whether the start of the process with a mark was written down before."""
        self.world = world
        self.classes = classes
        self.intended = intended
        self.children: dict[int, Process] = {}
        self.renewed: Callable[[str], None] = lambda how: None

    def start(self) -> Any:
        """There is no fork server to start."""

    async def keep(self) -> None: ...

    async def close(self) -> None: ...

    async def spawn(
        self,
        confinement: Any,
        *,
        descriptors: Mapping[int, int],
        arguments: Sequence[int | str],
        entry: str = "",
        path: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        groups: Sequence[int] = (),
    ) -> Child:
        world = self.world
        await trio.sleep(world.chance.uniform(0.001, 0.01))
        world.pass_point(f"spawn {confinement.name}")
        if world.chance.random() < world.faults.unspawned:
            world.note("not spawned")
            raise CannotConfine(confinement.name, "making the process", "", os.strerror(11))
        mark = environment.get("ATOLL_PROCESS", "")
        if mark and not self.intended(mark):
            world.wrong(f"{confinement.name} is started, and nothing says that it was to be")
        held = {target: os.dup(given) for target, given in descriptors.items()}
        if entry:
            process = world.start(f"describe {confinement.name}", self._describe, held[LISTEN])
        else:
            end = socket.socket(fileno=held.pop(CONTROL))
            own = launch.Process(end, self._load, _leave)
            process = world.start(confinement.name, own.run)
            process.at_death.append(end.close)
        process.at_death.append(lambda: _close_all(held.values()))
        self.children[process.pid] = process
        world.pass_point(f"spawned {confinement.name}")
        return Child(world, process)

    def _load(self, start: control.Start) -> type[Serves[Any]]:
        return self.classes(start.package, start.folder, start.version)

    async def _describe(self, listen: int) -> None:
        """What `ipc.runtime.describe.main` does."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(listen))))
        told = b"".join([data async for data in stream])
        asked = msgspec.json.decode(told, type=Asked)
        server = self.classes(asked.package, asked.folder, Path(asked.folder).name)
        answer = Answer(description=describe(server, asked.configs))
        await stream.send_all(msgspec.json.encode(answer))
        await stream.aclose()


def _leave(status: int) -> None:
    raise SystemExit(status)


def _close_all(descriptors: Any) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def from_folder(package: str, folder: str, version: str) -> type[Serves[Any]]:
    """The class `Server` of a version, imported under a name of its own: many versions live in one interpreter."""
    name = f"simulated_{version}_{package}"
    if f"{name}.server" not in sys.modules:
        for module in ("", "interface", "server"):
            path = Path(folder) / package / f"{module or '__init__'}.py"
            full = f"{name}.{module}" if module else name
            spec = importlib.util.spec_from_file_location(
                full, path, submodule_search_locations=None if module else [str(path.parent)]
            )
            assert spec is not None and spec.loader is not None
            sys.modules[full] = made = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(made)
    server: type[Serves[Any]] = sys.modules[f"{name}.server"].Server
    return server


class Group:
    """A control group: freezing works, limits do not."""

    def __init__(self, name: str, children: dict[int, Process]) -> None:
        self.name = name
        self._children = children
        self._pids: list[int] = []

    def open_procs(self) -> list[int]:
        return []

    def joined(self, pid: int) -> None:
        self._pids.append(pid)

    def limit(self, limits: Any) -> list[str]:
        return []

    def members(self) -> set[int]:
        return {pid for pid in self._pids if self._children[pid].alive}

    def killed_for_memory(self) -> int:
        return 0

    async def freeze(self) -> None:
        for pid in self._pids:
            self._children[pid].frozen = True
        await trio.lowlevel.checkpoint()

    async def thaw(self) -> None:
        for pid in self._pids:
            self._children[pid].frozen = False
        await trio.lowlevel.checkpoint()

    async def end(self) -> None: ...

    def remove(self) -> list[str]:
        return []


class Slices:
    kind = "v2"
    lacks: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    def __init__(self, children: dict[int, Process]) -> None:
        self._children = children
        self._groups: dict[tuple[str, ...], Group] = {}

    def group(self, *names: str) -> Group:
        return self._groups.setdefault(names, Group("/".join(names), self._children))

    async def clean(self) -> list[str]:
        return []

    def leave(self) -> list[str]:
        return []


class Watch:
    """Nothing is filtered, so nothing is refused."""

    watcher = None

    def start(self) -> Any: ...

    async def watch(self, number: int, process: Any) -> None: ...

    async def report(self) -> None: ...

    async def renew(self, ended: Any) -> None: ...

    async def close(self) -> None: ...


class Clock:
    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> float:
        return self._world.wall()

    def monotonic(self) -> int:
        return self._world.now

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class Chance:
    def __init__(self, world: World) -> None:
        self._world = world

    def token(self, size: int) -> bytes:
        return self._world.chance.randbytes(size)

    def jitter(self) -> float:
        return self._world.chance.random()


class Peer:
    """A simulated program that connected: its socket bears its number."""

    certain = True
    gid = 0

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.uid = os.geteuid()
        self.ancestors = [process.pid]
        self.groups: set[int] = set()
        self.cgroup = ""
        self.program = process.name
        self.pidfd = process.pidfd()

    def lives(self) -> bool:
        return self._process.alive

    def close(self) -> None:
        os.close(self.pidfd)


class Doors:
    def __init__(self, world: World, kernel: Process) -> None:
        self._world = world
        self._kernel = kernel

    def peer(self, end: socket.socket) -> Any:
        pid = int(end.getpeername().rpartition(b"-")[2])
        process = next((each for each in self._world.processes if each.pid == pid), None)
        if process is None:
            from atoll.microkernel.peers import Refused

            raise Refused("the program that connected has ended")
        return Peer(process)

    def own(self) -> int:
        return self._kernel.pidfd()


class Threads:
    """Work is done at once; others have their turn before and after."""

    async def run(self, work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        done = work()
        await trio.lowlevel.checkpoint()
        return done


def made(world: World, kernel: Process, classes: Classes, intended: Callable[[str], bool]) -> Mechanisms:
    """All of it, for one boot."""
    spawner = Spawner(world, classes, intended)
    return Mechanisms(
        spawner, Watch(), Slices(spawner.children), ABILITIES, Clock(world), Chance(world), Doors(world, kernel),
        Threads(),
    )  # fmt: skip
