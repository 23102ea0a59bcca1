"""The real host: a fork server, the control groups that there are, processes of the system."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from atoll.microkernel.mechanisms import Mechanisms, Slices
from atoll.microkernel.processes import Forge
from atoll.microkernel.protection import Bind, Confinement, Host, Subject, plan, probe
from atoll.microkernel.remains import end_survivors
from atoll.microkernel.slices import Chosen, choose
from atoll.microkernel.versions import readable_copy
from atoll.microkernel.watching import Watching

from .hosts import PACKAGES, Body, Main

HOUSE = Path(__file__).parents[3]
FIRST_UID = 710_100
Grouping = Callable[[str], Slices]
"""The groups of a node of this name."""
WITHIN = 100.0
"""Seconds for one test: what hangs is a fault."""


def without_groups(name: str) -> Slices:
    """What a user gets who may make no control groups."""
    return Chosen(name, "none", ("this host was given no control groups",), {})


class Real:
    """One node's mechanisms on this machine."""

    def __init__(self, forge: Forge, abilities: Host, groups: Callable[[], Slices], folder: Path) -> None:
        self.mechanisms = Mechanisms(forge, Watching("--unused"), groups(), abilities)
        self.hopeless: dict[str, Any] = {"groups": [os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)]}
        self.boot_again = groups
        self._folder = folder

    def package(self, name: str) -> Path:
        return self._folder / name / name

    def confinement(self, name: str) -> Confinement:
        subject = Subject(
            name=name,
            uid=FIRST_UID if os.geteuid() == 0 else None,
            binds=(Bind(source=str(self._folder)),),
        )
        return plan("process", subject, self.mechanisms.abilities).require()

    @asynccontextmanager
    async def program(self, main: Main) -> AsyncIterator[Program]:
        made = Program(main)
        try:
            yield made
        finally:
            made.kill()
            with trio.CancelScope(shield=True):
                await made.ended()
            made.end.close()

    def close(self) -> None:
        for descriptor in self.hopeless["groups"]:
            os.close(descriptor)


class Program:
    def __init__(self, main: Main) -> None:
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.conformance.mechanisms.programs", main.__name__]
        with theirs:
            self._process = subprocess.Popen(command, cwd=HOUSE, stdin=theirs)
        self.end.setblocking(False)
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> None:
        await trio.to_thread.run_sync(self._process.wait)


def _descriptors() -> list[str]:
    """This process's, without those that only wait to be collected."""
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))


class Machine:
    """A fork server for all tests of a run, and packages where its children can read them."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self._forge = forge
        self._folder = folder
        self._abilities = probe()

    def run(self, body: Body, grouping: Grouping = choose) -> None:
        before = _descriptors()
        trio.run(self._hosted, body, grouping)
        assert _descriptors() == before, "descriptors are left open"

    async def _hosted(self, body: Body, grouping: Grouping) -> None:
        name = f"conform-{secrets.token_hex(4)}"
        host = Real(self._forge, self._abilities, partial(grouping, name), self._folder)
        try:
            with trio.fail_after(WITHIN):
                await body(host)
        finally:
            host.close()
            with trio.CancelScope(shield=True):
                left = await host.boot_again().clean()
        assert left == []


@contextmanager
def machine() -> Iterator[Machine]:
    marker = f"--test={secrets.token_hex(8)}"
    forge = Forge(marker)
    with tempfile.TemporaryDirectory(prefix="atoll-conform-") as folder:
        os.chmod(folder, 0o755)  # children of root have user ids of their own
        for package in PACKAGES.iterdir():
            readable_copy(package, Path(folder) / package.name)
        forge.start()
        try:
            yield Machine(forge, Path(folder))
        finally:
            trio.run(forge.close)
            trio.run(end_survivors, marker)
