"""Clients of a real node transact while its store, and at full length its kernel, is killed again and again: all that they
were told can have happened one transaction after the other, and nothing of it is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from atoll.ipc.system.state import State
from tests.microkernel.nodes import RealNode, booted, wait_for_end

from .anomalies import History, Transaction
from .client import TOLD, transactions_in
from .work import KEYSPACES, everything

IMAGE = """
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256

[keyspace.a]
[keyspace.b]

[server.state]
needs = {}
restart = { first = 0, most = 0, limit = 1000, within = 1 }
readers = { most = 1, above = 100 }
"""
CLIENT = "tests.serialisable.client"
SEED = int(os.environ.get("ATOLL_TEST_SEED", "0"))


class Clients:
    """Processes outside of the node. What they say while they go on comes on one pipe, a line each time."""

    def __init__(self, node: RealNode, folder: Path, count: int, each: int) -> None:
        here, there = os.pipe()
        self._said = os.fdopen(here)
        self._logs = [folder / f"client {number}" for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", CLIENT, *map(str, (node.folder, log, number, each))],
                stdin=subprocess.PIPE,
                stdout=there,
                cwd=Path(__file__).parents[2],
            )
            for number, log in enumerate(self._logs)
        ]
        os.close(there)

    def go_on(self, transactions: int) -> bool:
        """Until so many more are over; False if all are."""
        return all(self._said.readline() for _ in range(transactions // TOLD))

    def all_go_on(self) -> bool:
        """Until every one has gone on."""
        waiting = set(range(len(self._processes)))
        while waiting:
            said = self._said.readline()
            if not said:
                return False
            waiting.discard(int(said))
            waiting -= {number for number in waiting if self._processes[number].poll() is not None}
        return True

    def attach_again(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has done what it had to
                process.stdin.write(b"\n")
                process.stdin.flush()

    def history(self) -> list[Transaction]:
        """What all of them were told, when they have ended."""
        assert [process.wait() for process in self._processes] == [0] * len(self._processes)
        return [transaction for log in self._logs for transaction in transactions_in(log)]

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._said.close()


def kill_store(node: RealNode, chance: random.Random) -> None:
    """Its writer; or now and then a reader, unless that has ended by itself since the kernel was asked."""
    with node.attach() as me:
        rows = [row for row in me.kernel.ps.now() if row.server.startswith("state") and row.pid]
    readers = [row.pid for row in rows if row.server != "state"]
    writer = next(row.pid for row in rows if row.server == "state")
    pid = chance.choice(readers) if readers and chance.random() < 0.2 else writer
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def kill_kernel(node: RealNode, clients: Clients) -> None:
    processes = node.processes()
    node.kill()
    for pid in processes:
        wait_for_end(pid)
    node.boot()
    clients.attach_again()
    clients.all_go_on()


@pytest.mark.parametrize(
    ("clients", "each", "between", "kernels", "least"),
    [
        pytest.param(4, 500, 250, 5, 1_000, id="short"),
        pytest.param(8, 29_000, 1_500, 8, 200_000, marks=pytest.mark.soak, id="long"),
    ],
)
def test_what_clients_were_told_can_have_happened_in_a_row(
    tmp_path: Path, clients: int, each: int, between: int, kernels: int, least: int
) -> None:
    """`between`: transactions between two kills; each so many kills, it is the kernel's turn. `least`: those that
    came to pass: of the others clients were told an error, or did not hear what came of them."""
    chance = random.Random(SEED)
    kills, ends, began = 0, 0, time.monotonic()
    with booted(tmp_path, text=IMAGE) as node, ExitStack() as running:
        crowd = running.enter_context(Clients(node, tmp_path, clients, each))
        while crowd.go_on(chance.randrange(between // 2, between * 3 // 2)):
            if kernels and kills % kernels == kernels - 1:
                kill_kernel(node, crowd)
                ends += 1
            else:
                kill_store(node, chance)
            kills += 1
        transactions = crowd.history()
        took = time.monotonic() - began
        with node.attach() as me:
            stores: dict[str, State] = {name: me.keyspace(name) for name in KEYSPACES}
            final = everything(stores)
    history = History(transactions, final=final)
    anomalies = history.anomalies()
    outcomes = {
        outcome: sum(each.outcome == outcome for each in transactions)
        for outcome in ("ok", "failed", "unknown")
    }
    print(
        f"{len(transactions)} transactions ({outcomes}), {len(final)} lists, {len(history.graph)} edges; "
        f"{kills} kills, {ends} of them the kernel's; {took:.0f} s; {len(anomalies)} anomalies"
    )
    assert not anomalies, "\n".join(map(str, anomalies[:10]))
    assert kills > 2 and outcomes["ok"] >= least
