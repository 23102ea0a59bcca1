"""The narrow interfaces between the kernel's logic and what does things: a node knows its clocks, its randomness, its
zygote, its watcher and its control groups by these.

`Records` has its place beside its data (`changes.py`). Not behind an interface yet: trio's own timers and sockets, shared
memory, `/proc`, files. So a node does not run under a virtual clock.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio

from .processes import Exit
from .protection.confinement import Confinement
from .slices import Group, Slices
from .watcher import Flooded, Refusal

__all__ = [
    "Chance",
    "Clock",
    "Exit",
    "Group",
    "HostChance",
    "HostClock",
    "Process",
    "Slices",
    "Spawner",
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

    @property
    def watcher(self) -> Process | None:
        """The process that hears it."""

    async def watch(self, number: int, process: Process) -> None: ...

    async def report(self) -> Refusal | Flooded | None: ...

    async def renew(self, ended: Process) -> None: ...


class HostClock:
    """The host's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> int:
        return time.monotonic_ns()

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
