"""The simulated host: a body is the kernel of a world in which nothing goes wrong, once a seed."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from atoll.microkernel.mechanisms import Slices
from atoll.microkernel.protection import Confinement, Subject, plan
from tests.kit.forked import die_with_parent
from tests.simulation import mechanisms, run
from tests.simulation.world import Process, World

from .hosts import PACKAGES, Body, Inside, Main

SEEDS = range(1, 6)
WITHIN = 1000.0
"""Seconds of a world's time for one test: what hangs is a fault."""


class Simulated:
    """One node's mechanisms in a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._groups = mechanisms.Groups(world)
        self.kernel: Process
        self.mechanisms: Any

    def begin(self, kernel: Process) -> None:
        """`kernel`: the process that runs the body."""
        self.kernel = kernel
        self.mechanisms = mechanisms.made(
            self._world, kernel, mechanisms.from_folder, lambda mark: True, self._groups
        )

    @property
    def hopeless(self) -> dict[str, Any]:
        """From now on no process can be made."""
        self._world.faults.unspawned = 1.0
        return {}

    def package(self, name: str) -> Path:
        return PACKAGES / name

    def confinement(self, name: str) -> Confinement:
        return plan("process", Subject(name=name), mechanisms.ABILITIES).require()

    def boot_again(self) -> Slices:
        return mechanisms.Slices(self._groups)

    @asynccontextmanager
    async def program(self, main: Main) -> AsyncIterator[Program]:
        made = Program(self._world, main)
        try:
            yield made
        finally:
            made.kill()
            made.end.close()


class Program:
    def __init__(self, world: World, main: Main) -> None:
        self._world = world
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.process = world.start(main.__name__, self._run, main, theirs)
        self.process.at_death.append(theirs.close)
        self.pid = self.process.pid

    async def _run(self, main: Main, end: socket.socket) -> None:
        await main(Inside(mechanisms.Doors(self._world, self.process), end, self._bear))

    def _bear(self, caller: socket.socket) -> None:
        caller.bind(mechanisms.address(self._world, self.process))
        self.process.at_death.append(caller.close)

    def kill(self) -> None:
        self._world.kill(self.process)

    async def ended(self) -> None:
        end = self.process.pidfd()
        await trio.lowlevel.wait_readable(end)
        os.close(end)


def alive_in_worlds(body: Body) -> None:
    for seed in SEEDS:
        fault = _lived(seed, body)
        assert not fault, f"in the world of seed {seed}:\n{fault}"


def _lived(seed: int, body: Body) -> str:
    """What was wrong with a body in a seed's world, in a process of its own; empty: nothing."""
    here, there = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(here)
        try:
            die_with_parent(parent)
            _live(seed, body, there)
        except BaseException:
            _report(there, traceback.format_exc())
        finally:
            os._exit(3)
    os.close(there)
    with open(here, "rb") as told:
        said = told.read().decode()
    _, status = os.waitpid(child, 0)
    return said if status == 0 else said or f"its process ended with {status}"


def _report(there: int, fault: str) -> None:
    with open(there, "wb") as told:
        told.write(fault.encode())
    os._exit(0)


def _live(seed: int, body: Body, there: int) -> None:
    run.be_a_world()
    world = World(seed, tempfile.gettempdir())
    host = Simulated(world)

    async def main() -> None:
        await body(host)

    kernel = world.start("kernel", main)
    host.begin(kernel)

    def finish() -> None:
        found = list(world.broken)
        if kernel.error is not None:
            found.append("".join(traceback.format_exception(kernel.error)))
        _report(there, "\n".join(found))

    def late() -> None:
        world.wrong("\n".join(["it hangs:", *(line for each in world.processes for line in each.stacks())]))

    world.after(WITHIN, late)
    world.over = lambda: not kernel.alive or bool(world.broken)
    world.finish = finish
    world.live()
