"""The narrow interfaces between the kernel's logic and what does things: a node knows its clocks, its randomness, its
zygote, its watcher and its control groups by these.

`Records` has its place beside its data (`changes.py`). trio's timers and sockets are behind its own clock and its own
look at descriptors; shared memory, sockets and files are real also where a node is simulated (tests/simulation).
"""

import os
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import trio

from atoll.ipc import clock

from .peers import Peer
from .processes import Exit
from .protection import Host
from .protection.confinement import Confinement
from .slices import Group, Slices
from .watcher import Flooded, Refusal

__all__ = [
    "Chance",
    "Clock",
    "Doors",
    "Exit",
    "Group",
    "HostChance",
    "HostClock",
    "HostDoors",
    "HostThreads",
    "Mechanisms",
    "Process",
    "Slices",
    "Spawner",
    "Threads",
    "Watch",
]


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch: for rows."""

    def monotonic(self) -> int:
        """Nanoseconds of CLOCK_MONOTONIC: for deadlines."""

    async def sleep(self, seconds: float) -> None: ...


class Chance(Protocol):
    def token(self, size: int) -> bytes:
        """Bytes nobody can guess: ids, tokens."""

    def jitter(self) -> float:
        """From 0 to 1: spreads out what would else happen at once."""


class Process(Protocol):
    """A process the kernel started."""

    name: str
    pid: int
    pidfd: int
    exit: Exit | None
    listener: int | None
    """Of its system-call filter, if that has one and nobody was given it yet."""

    async def wait(self) -> Exit: ...

    def signal(self, number: int) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Spawner(Protocol):
    """Starts confined processes: `processes.Forge`."""

    renewed: Callable[[str], None]
    """Told how a fork server ended in whose place there is another now."""

    def start(self) -> Process: ...

    async def keep(self) -> None:
        """Runs as long as the kernel."""

    async def close(self) -> None:
        """What was started goes on."""

    async def spawn(
        self,
        confinement: Confinement,
        *,
        descriptors: Mapping[int, int],
        arguments: Sequence[int | str],
        entry: str = ...,
        path: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        groups: Sequence[int] = (),
    ) -> Process: ...


class Watch(Protocol):
    """Hears what filters refuse: `watching.Watching`."""

    def start(self) -> Process: ...

    async def close(self) -> None: ...

    @property
    def watcher(self) -> Process | None:
        """The process that hears it."""

    async def watch(self, number: int, process: Process) -> None: ...

    async def report(self) -> Refusal | Flooded | None: ...

    async def renew(self, ended: Process) -> None: ...


class Doors(Protocol):
    """Who is at the other end of a socket, and what tells others that the kernel lives."""

    def peer(self, end: socket.socket) -> Peer:
        """Who connected. Raises `Refused`, `OSError`."""

    def own(self) -> int:
        """A descriptor that is readable once this kernel has ended; the caller's."""


T = TypeVar("T")


class Threads(Protocol):
    """Does what would hold up the event loop."""

    async def run(self, work: Callable[[], T]) -> T: ...


class HostDoors:
    """The host's word, through /proc and pidfds."""

    def peer(self, end: socket.socket) -> Peer:
        return Peer(end)

    def own(self) -> int:
        return os.pidfd_open(os.getpid())


class HostThreads:
    """Threads of this process."""

    async def run(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work)


class HostClock:
    """The host's clocks."""

    def now(self) -> float:
        return clock.wall()

    def monotonic(self) -> int:
        return clock.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class HostChance:
    """The host's randomness."""

    def __init__(self) -> None:
        self._source = random.SystemRandom()

    def token(self, size: int) -> bytes:
        return self._source.randbytes(size)

    def jitter(self) -> float:
        return self._source.random()


class Mechanisms(NamedTuple):
    """What a node is made over."""

    spawner: Spawner
    watch: Watch
    slices: Slices
    abilities: Host
    clock: Clock = HostClock()
    chance: Chance = HostChance()
    doors: Doors = HostDoors()
    threads: Threads = HostThreads()
