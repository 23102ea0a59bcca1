"""What a simulated node is made over: `microkernel.mechanisms`, in a world."""

from __future__ import annotations

import errno
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
from atoll.ipc.runtime.describe import Asked, answer, framed
from atoll.ipc.serve import Serves
from atoll.ipc.system import control
from atoll.microkernel import descriptions, processes
from atoll.microkernel.mechanisms import Mechanisms
from atoll.microkernel.peers import Refused
from atoll.microkernel.processes import CannotConfine, Exit, ZygoteDied
from atoll.microkernel.protection import Host
from atoll.microkernel.slices import Limits
from atoll.microkernel.zygote import DESCRIPTORS_MOST

from .world import Process, World

ABILITIES = Host(
    root=False, uid=os.geteuid(), users="", mounts="", processes="", network="", ipc="", hostname="", landlock=3,
    filters="", notify="", closed=(),
)  # fmt: skip
SLOWEST = 0.01
"""Seconds that work in a thread takes at most."""
RENEWED_WITHIN = 0.3
"""Seconds that it takes at most until there is another fork server."""


class Child(processes.Process):
    """A process as the kernel that started it holds it."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(process.name, process.pid, process.pidfd())
        self._world = world
        self._process = process

    def poll(self) -> Exit | None:
        if self.exit is None and not self._process.alive:
            status = self._process.status
            self.exit = Exit(status, signal.SIGKILL if status is None else None)
        return self.exit

    def signal(self, number: int) -> None:
        if number != signal.SIGKILL:
            raise NotImplementedError(f"signal {number} to {self.name}: only SIGKILL is simulated")
        self._world.kill(self._process)


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
        entry: str = processes.DEFAULT_ENTRY,
        path: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        groups: Sequence[int] = (),
    ) -> Child:
        world = self.world
        await trio.sleep(world.chance.uniform(0.001, 0.01))
        world.pass_point(f"spawn {confinement.name}")
        handed = 1 + len(groups) + len(descriptors)
        if handed > DESCRIPTORS_MOST:
            raise CannotConfine(confinement.name, "handing over descriptors", "", f"{handed} are too many")
        await self._outlive_the_forge()
        if world.chance.random() < world.faults.unspawned:
            world.note("not spawned")
            raise CannotConfine(confinement.name, "making the process", "", os.strerror(11))
        mark = environment.get("ATOLL_PROCESS", "")
        if mark and not self.intended(mark):
            world.wrong(f"{confinement.name} is started, and nothing says that it was to be")
        held = {target: os.dup(given) for target, given in descriptors.items()}
        (number,) = arguments
        end = socket.socket(fileno=held.pop(int(number)))
        main = {processes.DEFAULT_ENTRY: self._serve, descriptions.ENTRY: self._describe}[entry]
        process = world.start(confinement.name, main, end)
        process.at_death += [end.close, lambda: _close_all(held.values())]
        self.children[process.pid] = process
        world.pass_point(f"spawned {confinement.name}")
        return Child(world, process)

    async def _outlive_the_forge(self) -> None:
        """What the fork server's death does to who asks it: `processes.Forge`."""
        world = self.world
        for _ in range(2):
            if world.chance.random() >= world.faults.forge_dies:
                return
            world.note("the fork server dies")
            await trio.sleep(world.chance.uniform(0.0, RENEWED_WITHIN))
            self.renewed("was killed by signal 9")
        raise ZygoteDied("was killed by signal 9")

    async def _serve(self, end: socket.socket) -> None:
        """What `ipc.runtime.launch.main` does."""
        await launch.Process(end, self._load, _leave).run()

    def _load(self, start: control.Start) -> type[Serves[Any]]:
        return self.classes(start.package, start.folder, start.version)

    async def _describe(self, end: socket.socket) -> None:
        """What `ipc.runtime.describe.main` does."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(end.dup()))
        told = b"".join([data async for data in stream])
        answered = answer(msgspec.json.decode(told, type=Asked), self._find)
        await stream.send_all(framed(b"") + msgspec.json.encode(answered))
        await stream.aclose()

    def _find(self, folder: str, package: str) -> type[Serves[Any]]:
        return self.classes(package, folder, Path(folder).name)


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
            try:
                spec.loader.exec_module(made)
            except BaseException:
                del sys.modules[full]
                raise
    server: type[Serves[Any]] = sys.modules[f"{name}.server"].Server
    return server


class Groups:
    """The control groups of one node, which outlive its kernels: who is in each, by its path."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._members: dict[tuple[str, ...], list[Process]] = {}

    def make(self, path: tuple[str, ...]) -> None:
        for depth in range(len(path)):
            self._members.setdefault(path[: depth + 1], [])

    def join(self, path: tuple[str, ...], pid: int) -> None:
        self._members[path] += [each for each in self._world.processes if each.pid == pid]

    def living(self, path: tuple[str, ...]) -> list[Process]:
        """In this group and all groups below it."""
        return [
            process
            for place, members in self._members.items()
            if place[: len(path)] == path
            for process in members
            if process.alive
        ]

    def written(self, path: tuple[str, ...]) -> None:
        """Something is written into a group's file. Raises `OSError`."""
        if self._world.chance.random() < self._world.faults.ungrouped:
            self._world.note(f"group {'/'.join(path)} does not take it")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def end(self, path: tuple[str, ...]) -> None:
        for process in self.living(path):
            self._world.kill(process)
            await trio.lowlevel.checkpoint()

    def remove(self, path: tuple[str, ...]) -> list[str]:
        if self.living(path):
            return [f"group {'/'.join(path)} was not removed: {os.strerror(errno.EBUSY)}"]
        for place in [place for place in self._members if place[: len(path)] == path]:
            del self._members[place]
        return []

    def remove_empty(self) -> list[str]:
        for path in sorted(self._members, key=len, reverse=True):
            if not self.living(path):
                self.remove(path)
        return []


class Group:
    """A control group: freezing works; limits are taken, or not, and hold nobody to anything."""

    def __init__(self, groups: Groups, path: tuple[str, ...]) -> None:
        self.name = "/".join(path)
        self._groups = groups
        self._path = path
        groups.make(path)

    def open(self) -> list[int]:
        return []

    def joined(self, pid: int) -> None:
        self._groups.join(self._path, pid)

    def limit(self, limits: Limits) -> list[str]:
        try:
            self._groups.written(self._path)
        except OSError as error:
            return [f"{self.name} did not take its limits: {error.strerror}"]
        return [
            f"{self.name} did not take {name!r}: {value}: {os.strerror(errno.EINVAL)}"
            for name, value in (("memory", limits.memory), ("pids", limits.pids))
            if value is not None and value < 0
        ]

    def short_turns(self, pid: int) -> list[str]:
        return []

    def keep_from_swap(self) -> list[str]:
        return []

    def members(self) -> set[int]:
        return {process.pid for process in self._groups.living(self._path)}

    def killed_for_memory(self) -> int:
        return 0

    async def freeze(self) -> None:
        await self._stand_still(True)

    async def thaw(self) -> None:
        await self._stand_still(False)

    async def _stand_still(self, frozen: bool) -> None:
        self._groups.written(self._path)
        for process in self._groups.living(self._path):
            process.frozen = frozen
        await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        self._groups.written(self._path)
        await self._groups.end(self._path)

    def remove(self) -> list[str]:
        return self._groups.remove(self._path)


class Slices:
    """A node's groups as one boot of it knows them."""

    kind = "v2"
    lacks: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._known: dict[tuple[str, ...], Group] = {}

    def group(self, *names: str) -> Group:
        if names not in self._known:
            self._known[names] = Group(self._groups, names)
        return self._known[names]

    async def clean(self) -> list[str]:
        await self._groups.end(())
        return self.leave()

    def leave(self) -> list[str]:
        self._known.clear()
        return self._groups.remove_empty()


class Watch:
    """Nothing is filtered, so nothing is refused."""

    watcher = None

    def __init__(self, world: World) -> None:
        self._world = world

    def start(self) -> Any: ...

    async def watch(self, number: int, process: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self._world.chance.random() < self._world.faults.unwatched:
            self._world.note("not watched")
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

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

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.uid = os.geteuid()
        self.gid = os.getegid()
        self.ancestors = [process.pid]
        self.groups = set(os.getgroups())
        self.cgroup = ""
        self.program = process.name
        self.pidfd = process.pidfd()

    def lives(self) -> bool:
        return self._process.alive

    def close(self) -> None:
        os.close(self.pidfd)


def address(world: World, process: Process) -> str:
    """What a socket of a simulated program's is bound to before it connects, so that the kernel knows whose it is."""
    return f"\0{os.getpid()}-{world.chance.getrandbits(32)}-{process.pid}"


class Doors:
    def __init__(self, world: World, kernel: Process) -> None:
        self._world = world
        self._kernel = kernel

    def peer(self, end: socket.socket) -> Any:
        pid = int(end.getpeername().rpartition(b"-")[2])
        process = next((each for each in self._world.processes if each.pid == pid), None)
        if process is None:
            raise Refused("the program that connected has ended")
        return Peer(process)

    def own(self) -> int:
        return self._kernel.pidfd()


class Threads:
    """Work is done at once, and told of later: others have their turn before and after."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            return work()
        finally:
            with trio.CancelScope(shield=True):  # a thread that has begun is waited for
                await trio.sleep(self._world.chance.uniform(0.0, SLOWEST))


def made(
    world: World, kernel: Process, classes: Classes, intended: Callable[[str], bool], groups: Groups
) -> Mechanisms:
    """All of it, for one boot."""
    spawner = Spawner(world, classes, intended)
    return Mechanisms(
        spawner, Watch(world), Slices(groups), ABILITIES, Clock(world), Chance(world), Doors(world, kernel),
        Threads(world),
    )  # fmt: skip
