"""One seed from its first step to its verdict, in a process of its own."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import trio

from atoll.ipc.client.outside import Outside
from atoll.ipc.errors import AtollError
from atoll.ipc.runtime.loop import ServeLoop
from atoll.microkernel import failpoints
from atoll.microkernel.connections import Connection
from atoll.microkernel.journal import Journal
from tests.kit.forked import die_with_parent
from tests.simulation import witness

from . import client, invariants
from .client import GATHERED, Book, Client
from .node import Node, image
from .packages.counter.interface import Counter
from .store import SLOWEST
from .world import BOOTED, SECOND, Faults, World

LASTS = 3.0
"""Seconds of the world's time under load and faults."""
SETTLES = 90.0
"""Seconds of the world's time for all to be well once nothing goes wrong any more."""
ANSWERED = 25.0
"""Seconds for one answer, when nothing goes wrong any more."""
STACK = 120 << 20
STEPS_MOST = 150_000
CLIENTS = 3
WINDOW = 0
"""The word of a status page that is odd while a message is between its check and its handler."""
OFF_CORE = 0.02
"""Seconds that a loop stands there at most: less than the kernel waits for one that runs."""
MEMORY = Path("/dev/shm")


class Verdict(NamedTuple):
    seed: int
    hash: str
    broken: list[str]
    steps: int
    killed: int
    boots: int
    calls: int
    acknowledged: int
    story: list[str]

    @property
    def command(self) -> str:
        return f"make simulate SEED={self.seed}"


def one(seed: int, *, tell: bool = False, plant: Callable[[], None] = lambda: None) -> Verdict:
    """Live through a seed's world. `plant` is called in its process, before it begins."""
    image()
    here, there = os.pipe()
    folder = tempfile.mkdtemp(prefix="atoll-sim-", dir=MEMORY if MEMORY.is_dir() else None)
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        os.close(here)
        try:
            die_with_parent(parent)
            _live(seed, Path(folder), there, tell, plant)
        except BaseException:
            _report(there, Verdict(seed, "", [traceback.format_exc()], 0, 0, 0, 0, 0, []))
        finally:
            os._exit(3)
    os.close(there)
    with open(here, "rb") as told:
        data = told.read()
    _, status = os.waitpid(child, 0)
    shutil.rmtree(folder)
    if not data:
        return Verdict(seed, "", [f"its process ended with {status}"], 0, 0, 0, 0, 0, [])
    return Verdict(**json.loads(data))


def _report(there: int, verdict: Verdict) -> None:
    try:
        with open(there, "wb") as told:
            told.write(json.dumps(verdict._asdict()).encode())
    finally:
        os._exit(0)


def be_a_world() -> None:
    """Make this process fit to live a world in, and for nothing else."""
    gc.disable()
    sys.setrecursionlimit(100_000)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(
        resource.RLIMIT_STACK, (STACK, most)
    )  # frames of the killed lie below those of the living
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})  # nobody spins for a peer on another one


def _live(seed: int, folder: Path, there: int, tell: bool, plant: Callable[[], None]) -> None:
    be_a_world()
    world = World(seed, str(folder), tell=tell)
    plant()
    Scenario(world, folder, there).begin()
    world.live()


class Scenario:
    """Boot, load under faults, quiet, and the look at what is left."""

    def __init__(self, world: World, folder: Path, there: int) -> None:
        self.world = world
        self.there = there
        self.node = Node(world, folder)
        self.book = Book()
        self.rows = invariants.Store(self.node.disk)
        self.kernel = invariants.Kernel()
        self.clients: list[Client] = []
        self.done = False
        self.end = BOOTED + int(LASTS * SECOND)
        world.watchers.append(self._look)
        world.over = self._over
        world.finish = self._finish
        world.after_kill = self.node.unring
        world.between = self._between
        witness.serves = (
            self._serves
        )  # of the module as servers name it: pytest has other names for those here
        _instrument(world)

    def begin(self) -> None:
        world = self.world
        self.faulty = Faults(world.chance)
        self.node.boot()
        world.after(0.05, self._go)
        world.after(LASTS, self._quiet)
        world.after(LASTS + SETTLES, self._late)

    def _go(self) -> None:
        self.world.faults = self.faulty
        for number in range(CLIENTS):
            self.clients.append(Client(self.world, self.node, self.book, number, self.end))
            self.clients[-1].start()
        self.world.after(0.2, self._revive)

    def _revive(self) -> None:
        """A program that was killed is started again."""
        for each in self.clients:
            if each.process is not None and not each.process.alive and self.world.now < self.end:
                each.start()
        if self.world.now < self.end:
            self.world.after(0.2, self._revive)

    def _quiet(self) -> None:
        world = self.world
        world.faults = Faults(world.chance, none=True)
        for process in world.processes:
            process.stalled = 0
        world.note("quiet")
        world.start("auditor", self._audit)

    def _between(self) -> None:
        if self.world.chance.random() < self.world.faults.spurious:
            self.node.ring()

    def _late(self) -> None:
        if not self.done:
            states = (
                {} if self.node.node is None else {s.name: s.state for s in self.node.node.servers.values()}
            )
            self.world.wrong(f"it is not well {SETTLES:g} s after the last fault: {states}")
            for process in self.world.processes:
                for line in process.stacks():
                    self.world.note("stands", line)
            self.done = True

    def _over(self) -> bool:
        if self.world.steps > STEPS_MOST and not self.done:
            self.world.wrong(f"it is not well after {STEPS_MOST} steps")
            self.done = True
        return self.done or len(self.world.broken) > 5

    def _serves(self, badge: int) -> None:
        found = self.book.serves(badge)
        if found:
            self.world.wrong(found)

    def _look(self) -> list[str]:
        found = list(self.rows.look())
        node, kernel = self.node, self.node.kernel
        # Until it serves a boot lives with the tree of `state` alone, and then with that of the rows.
        if node.serves and kernel is not None and not kernel.inside and self.world.moved is kernel:
            assert node.node is not None and node.parts is not None
            found += self.kernel.look(node.node, node.parts)
        return found

    # the end ------------------------------------------------------------------------------------------------------

    async def _audit(self) -> None:
        """Wait until every server serves, then read everything that was ever told."""
        while True:
            try:
                if self.node.serves and await self._audited():
                    break
            except* (AtollError, OSError) as group:
                self.world.note("auditor hears", str([str(e) for e in client._leaves(group)]))
            await trio.sleep(0.2)
        self.done = True

    async def _audited(self) -> bool:
        auditor = Client(self.world, self.node, self.book, 99, 0)
        auditor.process = next(each for each in self.world.processes if each.name == "auditor")
        program, end = auditor.connected()
        with end:
            await self._answered("welcome", program.enter("auditor"))
            for row in await self._answered("ps", program.kernel.ps()):
                if row.state == "frozen":
                    await self._answered(f"thaw {row.server}", program.kernel.thaw(row.server))
                elif row.state in ("failed", "stopped"):
                    await self._answered(f"restart {row.server}", program.kernel.restart(row.server, 1.0))
            _, counter = await self._answered("open", program.opened("counter", Counter))
            for key in sorted(self.book.asked):
                told = key in self.book.told
                found = await self._answered("get", counter.get(key))
                if told and found != 1:
                    self.world.wrong(f"{key} was acknowledged and is {found}")
                elif found not in (0, 1):
                    self.world.wrong(f"{key} was added once at most and is {found}")
            for id in sorted(self.book.gathered):
                if await self._answered("result", counter.gather.result(id)) != GATHERED:
                    self.world.wrong(f"workflow {id} gave another result than it has")
                for step in range(GATHERED):
                    found = await self._answered("get", counter.get(f"{id}/{step}"))
                    if found != 1:
                        self.world.wrong(f"step {step} of workflow {id} happened {found} times")
            assert self.node.node is not None
            for number, stands in self.book.granted.items():
                if stands != self.node.node.tree.has(number):
                    what = "acknowledged and is gone" if stands else "revoked and is there again"
                    self.world.wrong(f"a lasting grant was {what}: {number:#x}")
        return True

    async def _answered(self, what: str, call: Any) -> Any:
        """What a call gives, if it is answered in any time that a person would wait."""
        with trio.move_on_after(ANSWERED):
            return await call
        raise OSError(f"no answer to {what} within {ANSWERED:g} s")

    def _finish(self) -> None:
        world = self.world
        for sentence in self.rows.whole():
            world.wrong(sentence)
        _report(
            self.there,
            Verdict(world.seed, world.hash(), world.broken, world.steps, world.killed, self.node.boots,
                    self.book.calls, len(self.book.told), world.story if world.broken else []),
        )  # fmt: skip


class _Words:
    """The status page of a loop that may have to wait for its core before it leaves the window between check and handler."""

    def __init__(self, world: World, words: Any) -> None:
        self._world = world
        self._words = words

    def __getitem__(self, index: int) -> Any:
        return self._words[index]

    def __setitem__(self, index: int, word: int) -> None:
        world = self._world
        if index == WINDOW and world.chance.random() < world.faults.off_core:
            world.note(f"{world.moving[-1].name} is off its core in its window")
            world.halt(world.chance.uniform(0.0, OFF_CORE))
        self._words[index] = word


def _instrument(world: World) -> None:
    """Points at which the world looks into the steps of processes: packets, records of the journal, fail points, and the
    window of a receive loop."""
    send, append, make = Connection._try, Journal._append, ServeLoop.__init__

    def sending(self: Connection, data: bytes, descriptors: list[int]) -> bool:
        world.pass_point("send")
        world.note("packet", data)
        return send(self, data, descriptors)

    def appending(self: Journal, record: Any) -> None:
        world.pass_point("journal")
        if world.chance.random() < world.faults.slow_disk:
            world.halt(world.chance.uniform(0.0, SLOWEST))
        if world.chance.random() < world.faults.full_disk:
            world.note("the journal's disk is full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, record)
        world.pass_point("journalled")

    def making(self: ServeLoop, *arguments: Any) -> None:
        make(self, *arguments)
        self._status_words = _Words(world, self._status_words)  # type: ignore[assignment]

    ServeLoop.__init__ = making  # type: ignore[method-assign,assignment]
    Connection._try = sending  # type: ignore[method-assign]
    Journal._append = appending  # type: ignore[method-assign]
    failpoints.reach = world.pass_point
    alive = Outside.alive

    def lives(self: Outside, wait: float = 0.0) -> bool:
        """Waits in the world's time: the kernel that may be ending needs it, too."""
        until = world.now + int(wait * SECOND)
        while (up := alive(self)) and world.now < until:
            world.halt(wait / 10)
        return up

    Outside.alive = lives  # type: ignore[method-assign]
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("atoll.microkernel.") and hasattr(module, "reach"):
            module.reach = world.pass_point  # type: ignore[attr-defined]
