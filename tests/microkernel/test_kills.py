"""Each process of a node is killed, in turn and at random, while clients write. What they were told is kept outside.

Every write has a key of its own, so that what was acknowledged can be compared one by one: it is there, with its value,
counted once. What a client was not told of may be there or not, and never in part.
"""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from atoll.ipc.errors import AtollError, NodeDown
from atoll.microkernel.place import Place
from atoll.microkernel.remains import survivors
from atoll.microkernel.slices import hierarchy

from .nodes import IMAGE, PACKAGES, RealNode, booted, interface, wait_for_end

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

SERVERS = ("state", "counter", "teller")
VICTIMS = (*SERVERS, "zygote", "watcher", "kernel")
QUICK = "restart = { first = 0, most = 0, limit = 1000, within = 1 }"
ORPHANED: list[float] = []
"""Seconds from a kernel's death to that of the last process of its node, for each that was killed."""
SEED = int(os.environ.get("ATOLL_TEST_SEED", "0"))


class Client:
    """Writes key after key and reads each through the teller; remembers what it was told. Comes back to a node that was
    booted again."""

    def __init__(self, node: RealNode, name: str) -> None:
        self.node = node
        self.name = name
        self.told: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.wrong: list[str] = []
        self.over = threading.Event()
        self.there = threading.Event()
        """Set while a node is there to attach to."""
        self.there.set()
        self.awake = threading.Event()
        """Cleared while the store is walked, which would else have ever more to walk."""
        self.awake.set()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self.over.is_set():
            try:
                with self.node.attach() as attached:
                    counter, teller = attached.open("counter", Counter), attached.open("teller", Teller)
                    while not self.over.is_set():
                        self.awake.wait()
                        number += 1
                        key = f"{self.name}.{number}"
                        self.asked[key] = number
                        self.told[key] = counter.add.now(key, number)
                        read = teller.total.now(key)
                        if {self.told[key], read} != {number}:
                            self.wrong.append(f"{key} was counted as {self.told[key]} and read as {read}")
            except (NodeDown, ConnectionError, FileNotFoundError):
                self.there.wait(0.05)
            except AtollError as error:
                if self.there.is_set():
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    return

    def end(self) -> None:
        self.over.set()
        self.awake.set()
        self._thread.join()


class Load:
    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.clients = [Client(node, name) for name in ("a", "b", "c")]

    def goes_on(self) -> None:
        """Every client is told of writes that it began after now."""
        asked = [len(client.asked) for client in self.clients]
        for client, before in zip(self.clients, asked, strict=True):
            while len(client.told) == 0 or max(client.told.values()) <= before:
                assert not client.wrong, client.wrong
                client.over.wait(0.01)

    def node_is(self, there: bool) -> None:
        for client in self.clients:
            if there:
                client.there.set()
            else:
                client.there.clear()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nobody begins another write."""
        for client in self.clients:
            client.awake.clear()
        yield
        for client in self.clients:
            client.awake.set()

    def compare(self) -> None:
        """Every write that was acknowledged is there by its content."""
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            for client in self.clients:
                assert client.wrong == []
                for key, number in client.asked.items():
                    found = counter.get.now(key)
                    assert found == number or (found == 0 and key not in client.told), key


@contextmanager
def loaded(node: RealNode) -> Iterator[Load]:
    load = Load(node)
    try:
        yield load
    finally:
        for client in load.clients:
            client.end()


def lasting(node: RealNode) -> set[tuple[object, ...]]:
    with node.attach() as attached:
        return {
            (row.number, row.holder, row.server, row.interface, row.badge, tuple(row.rights))
            for row in attached.kernel.caps.now()
            if row.lasting
        }


def kill(node: RealNode, load: Load, victim: str) -> None:
    """Kill it, and see the node whole again."""
    if victim == "kernel":
        kill_kernel(node, load)
        return
    if victim in SERVERS:
        with node.attach() as attached:
            pid = next(row.pid for row in attached.kernel.ps.now() if row.server == victim)
    else:
        pid = helper(node, victim)
    if pid:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
    load.goes_on()
    with load.resting():
        check(node)


def helper(node: RealNode, name: str) -> int:
    """The zygote or the watcher; what the zygote made has its command line. One that was killed is there again soon."""
    while True:
        with node.attach() as attached:
            servers = {row.pid for row in attached.kernel.ps.now()}
        for each in survivors(f"atoll-node={node.folder}"):
            if each.pid not in servers and each.command[3].endswith(name):
                return each.pid


def check(node: RealNode) -> None:
    """The store is whole; beside a writer, too."""
    words = [sys.executable, "-m", "atoll.servers.state.check", str(node.folder / "data" / "state")]
    checked = subprocess.run(words, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def kill_kernel(node: RealNode, load: Load) -> None:
    before = lasting(node)
    processes = node.processes()
    load.node_is(False)
    node.kill()
    killed = time.monotonic()
    for pid in processes:
        wait_for_end(pid)
    ORPHANED.append(time.monotonic() - killed)
    assert node.processes() == []
    check(node)
    node.boot()
    load.node_is(True)
    assert lasting(node) == before
    with node.attach() as attached:
        assert {row.state for row in attached.kernel.ps.now()} == {"serving"}
    load.goes_on()


class Left(NamedTuple):
    """What a node could leave on its host beside processes."""

    mounts: frozenset[str]
    memory: int
    """Shared memory that this program has open: what nobody has open or mapped is gone."""

    @classmethod
    def now(cls) -> "Left":
        gc.collect()  # attachments that ended
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return cls(
            frozenset(line.split()[4] for line in mounts), sum("memfd:" in path for path in open_links())
        )


def open_links() -> list[str]:
    """What this program has open, as far as it still has."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def run(folder: Path, victims: list[str]) -> None:
    before = Left.now()
    plain = IMAGE.format(level="seccomp", packages=PACKAGES, counter=QUICK, more=QUICK)
    text = plain.replace("[server.state]", f"[server.state]\n{QUICK}")
    with booted(folder, text=text) as node:
        with loaded(node) as load:
            load.goes_on()
            for victim in victims:
                kill(node, load, victim)
        load.compare()
        assert node.stop() == 0
        assert node.processes() == []
    place = Place(name="test", folder=node.folder, image_path="", degrade=False)
    assert hierarchy.left_by(place.group) == []
    assert {path for path in Left.now().mounts - before.mounts if str(folder) in path} == set()
    assert Left.now().memory <= before.memory


def test_each_process_is_killed_in_turn_under_load(tmp_path: Path) -> None:
    run(tmp_path, [*VICTIMS, *VICTIMS[:3]])


@pytest.mark.parametrize("times", [12, pytest.param(300, marks=pytest.mark.soak)])
def test_processes_are_killed_at_random_under_load(tmp_path: Path, times: int) -> None:
    chance = random.Random(SEED)
    run(tmp_path, [chance.choice(VICTIMS) for _ in range(times)])
    print(
        f"{len(ORPHANED)} kernels killed: the last process was gone after {max(ORPHANED, default=0):.3f} s at most"
    )
