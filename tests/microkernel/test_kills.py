"""Each process of a node is killed, in turn and at random, while clients write; after each kill all that was acknowledged is
there, and nothing else is more than it was.

`ATOLL_TEST_SEED=N` lives one run's kills again.
"""

import math
import os
import random
import signal
from pathlib import Path

import pytest

from atoll.microkernel.remains import survivors

from .children import planned
from .left import ORPHANED_MOST, Held, checked, cleaned, last_gone, no_more_than, nothing_left, own_memory
from .nodes import IMAGE, PACKAGES, RealNode, booted, wait_for_end
from .writers import Writers, writing

SERVERS = ("state", "counter", "teller")
VICTIMS = (*SERVERS, "zygote", "watcher", "kernel")
QUICK = "restart = { first = 0, most = 0, limit = 1000, within = 1 }"


def lasting(node: RealNode) -> set[tuple[object, ...]]:
    with node.attach() as attached:
        return {
            (row.number, row.holder, row.server, row.interface, row.badge, tuple(row.rights))
            for row in attached.kernel.caps.now()
            if row.lasting
        }


class Killing:
    """A loaded node whose processes are killed one after the other."""

    def __init__(self, node: RealNode, writers: Writers) -> None:
        self.node = node
        self.writers = writers
        writers.goes_on()
        self.before = Held.by(node)
        """All but the writers have yet to attach."""
        self.orphaned: list[float] = []
        """Seconds from a kernel's death to that of the last process of its node, for each that was killed."""

    def kill(self, victim: str) -> None:
        """Kill it, and see the node whole again."""
        if victim == "kernel":
            self._kill_kernel()
        else:
            self._kill_below(victim)
        self.writers.goes_on()
        self.writers.compare_newest()
        no_more_than(self.before, self.node)

    def _kill_below(self, victim: str) -> None:
        if victim in SERVERS:
            with self.node.attach() as attached:
                pid = next(row.pid for row in attached.kernel.ps.now() if row.server == victim)
        else:
            pid = helper(self.node, victim)
        if pid:
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
        self.writers.goes_on()
        with self.writers.resting():
            checked(self.node)

    def _kill_kernel(self) -> None:
        node, writers = self.node, self.writers
        before = lasting(node)
        writers.node_is(False)
        killed = node.kill()
        self.orphaned.append(last_gone(node) - killed)
        checked(node)
        node.boot()
        writers.node_is(True)
        assert lasting(node) == before
        with node.attach() as attached:
            assert {row.state for row in attached.kernel.ps.now()} == {"serving"}


def helper(node: RealNode, name: str) -> int:
    """The zygote or the watcher; what the zygote made has its command line. One that was killed is there again soon."""
    while True:
        with node.attach() as attached:
            servers = {row.pid for row in attached.kernel.ps.now()}
        for each in survivors(f"atoll-node={node.folder}"):
            if each.pid not in servers and each.command[3].endswith(name):
                return each.pid


def run(folder: Path, victims: list[str]) -> list[float]:
    """How long processes outlived their kernels."""
    before = own_memory()
    level = "seccomp" if planned("sandbox").missing else "sandbox"
    plain = IMAGE.format(level=level, packages=PACKAGES, counter=QUICK, more=QUICK)
    text = plain.replace("[server.state]", f"[server.state]\n{QUICK}")
    with booted(folder, text=text) as node:
        with writing(node, folder / "acknowledged") as writers:
            killing = Killing(node, writers)
            for victim in victims:
                killing.kill(victim)
        writers.compare()
        node.kill()
        last_gone(node)
        cleaned(node)
        nothing_left(node)
        node.boot()
        writers.compare()
        assert node.stop() == 0
        nothing_left(node)
    assert own_memory() <= before
    return killing.orphaned


def test_each_process_is_killed_in_turn_under_load(tmp_path: Path) -> None:
    run(tmp_path, [*VICTIMS, *VICTIMS[:3]])


@pytest.mark.parametrize(
    ("times", "most"), [(12, math.inf), pytest.param(300, ORPHANED_MOST, marks=pytest.mark.soak)]
)
def test_processes_are_killed_at_random_under_load(tmp_path: Path, times: int, most: float) -> None:
    seed = int(os.environ.get("ATOLL_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"the kills of ATOLL_TEST_SEED={seed}; what was acknowledged: {tmp_path / 'acknowledged'}")
    chance = random.Random(seed)
    orphaned = run(tmp_path, [chance.choice(VICTIMS) for _ in range(times)])
    longest = max(orphaned, default=0.0)
    print(f"{len(orphaned)} kernels killed: the last process was gone after {longest:.3f} s at most")
    assert longest < most
