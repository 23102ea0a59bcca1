"""A simulated node: its folder, its image, its kernel, and what becomes of it when that dies."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from functools import cache
from pathlib import Path
from typing import Any

import trio

from atoll.ipc.runtime.describe import describe
from atoll.ipc.serve import Serves
from atoll.ipc.system.records import IntentRow, decode
from atoll.microkernel import boot, image_check, intents
from atoll.microkernel.image_check import Checked
from atoll.microkernel.mechanisms import Mechanisms
from atoll.microkernel.node import Node as KernelNode
from atoll.microkernel.ownership import Owned
from atoll.microkernel.place import Place
from atoll.microkernel.wiring import Parts

from . import mechanisms
from .store import Disk, simulated
from .world import Process, World

PACKAGES = Path(__file__).parent / "packages"
IMAGE = """
[image]
name = "simulated"

[node]
level = "process"
account = "all"

[account.all]
channels = 256
buffers = "4MiB"

[keyspace.counter]

[server.state]
needs = {}

[server.counter]
package = "./packages/counter"
needs = { rows = { keyspace = "counter", rights = ["read", "write"] } }

[server.teller]
package = "./packages/teller"
needs = { counter = { server = "counter", rights = ["read", "write"] } }
"""
DRAFT = image_check.read(IMAGE, "simulated.toml")
GUARDIAN = 1.0
"""Seconds within which nothing of a node is left whose kernel died."""


@cache
def image() -> Checked:
    """The image, checked; its packages describe themselves in this process."""

    async def describe_here(packages: Any, configs: Any) -> Any:
        return {
            name: describe(
                mechanisms.from_folder(path.name, str(path.parent), "described"), configs.get(name)
            )
            for name, path in packages.items()
        }

    return trio.run(image_check.check, DRAFT, Path(__file__).parent, describe_here)


class Node:
    """One node over its boots. Kernel parts of the present boot are `node` and `parts` while one runs."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.checked = image()
        self.place = Place(name="simulated", folder=folder, image_path="simulated.toml", degrade=False)
        self.disk = Disk(world)
        self.store = simulated(self.disk)
        self.boots = 0
        self.kernel: Process | None = None
        self.node: KernelNode | None = None
        self.parts: Parts | None = None
        self.serves = False
        self.spawner: mechanisms.Spawner | None = None
        self.groups = mechanisms.Groups(world)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.second = self._second_version(folder)

    def _second_version(self, folder: Path) -> Path:
        """Another version of the counter, to be swapped in."""
        package = folder / "second" / "counter"
        shutil.copytree(PACKAGES / "counter", package, ignore=shutil.ignore_patterns("__pycache__"))
        server = package / "server.py"
        server.write_text(server.read_text().replace("VERSION = 1", "VERSION = 2"))
        return package

    def classes(self, package: str, folder: str, version: str) -> type[Serves[Any]]:
        return self.store if package == "state" else mechanisms.from_folder(package, folder, version)

    def intended(self, mark: str) -> bool:
        """Whether one row says that the process with this mark is about to be started: in the store, or in the journal."""
        assert self.node is not None
        changes = self.node.store.journal.waiting.values()
        written = {key: value for each in changes for key, value in each.writes.items()}
        waiting = [
            decode(IntentRow, value) for key, value in written.items() if value and key[:1] == IntentRow.table
        ]
        found = {intent.id: intent for intent in (*self.disk.rows(IntentRow), *waiting)}
        return sum(intents.starts(intent, mark) for intent in found.values()) == 1

    # doorbells ---------------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """A ring that means nothing, on some channel, to either end."""
        channels = [] if self.node is None else list(self.node.channels)
        if channels:
            channel = self.world.chance.choice(channels)
            bell = self.world.chance.choice([channel._server_bell, channel._client_bell])
            self.world.note(f"ring {channel.number}")
            with contextlib.suppress(BlockingIOError):
                bell.send(b"!", socket.MSG_DONTWAIT)

    def unring(self, process: Process) -> None:
        """A process that is killed may have taken words that say who sleeps, and not rung yet."""
        world = self.world
        if self.node is None or world.chance.random() >= world.faults.unrung:
            return
        for channel in self.node.channels:
            if getattr(channel.client, "pid", 0) == process.pid:
                far = channel._server_bell
            else:
                serving = self.node.serving(channel.server)
                if serving is None or serving.pid != process.pid:
                    continue
                far = channel._client_bell
            with contextlib.suppress(BlockingIOError):
                far.recv(4096, socket.MSG_DONTWAIT)
        world.note("not rung")

    # boots ------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        self.boots += 1
        self.kernel = self.world.start("kernel", self._kernel)
        self.kernel.at_death.append(self._kernel_died)

    async def _kernel(self) -> None:
        world, kernel = self.world, self.kernel
        assert kernel is not None
        signal.signal(signal.SIGINT, signal.SIG_DFL)

        def over(place: Place) -> Any:
            made = mechanisms.made(world, kernel, self.classes, self.intended, self.groups)
            self.spawner = made.spawner  # type: ignore[assignment]
            return made

        booted = _Boot(self, over)
        failure = await booted.run(self._up)
        world.note("down", failure)

    def _up(self, node: KernelNode) -> None:
        self.serves = True
        self.world.note("up")

    def _kernel_died(self) -> None:
        """Its descriptors close, its processes are killed within a second, and somebody boots it again."""
        world, node, spawner = self.world, self.node, self.spawner
        self.kernel = self.node = self.parts = self.spawner = None
        self.serves = False
        if node is not None:
            for party in list(node.parties.values()):
                if party.connection is not None and not party.connection.closed:
                    party.connection._end.close()
        for process in [] if spawner is None else list(spawner.children.values()):
            world.after(world.chance.uniform(0.0, GUARDIAN), lambda process=process: world.kill(process))
        world.after(GUARDIAN + world.chance.uniform(0.0, 1.0), self._boot_again)

    def _boot_again(self) -> None:
        if not self.world.over() and self.kernel is None:
            self.boot()


class _Boot(boot.Boot):
    """Says which parts it made."""

    def __init__(self, owner: Node, over: Any) -> None:
        super().__init__(owner.place, DRAFT, Owned(owner.lock, False), self._say, over=over)
        self._owner = owner

    async def _checked(self, over: Mechanisms) -> Checked | None:
        """Checking an image is not simulated: it takes no turns."""
        return self._owner.checked

    def _say(self, line: str) -> None:
        self._owner.world.note("say", line)

    async def _up(self, node: KernelNode, parts: Parts, before: boot.Before) -> None:
        self._owner.node, self._owner.parts = node, parts
        self._owner.world.note(f"boot {before.epoch}")
        await super()._up(node, parts, before)


__all__ = ["Node"]
