"""What commits wait for while the store gives up its past, and while it is backed up.

Clients commit so many transactions a second together, each in a thread of its own, in blocks by turns: with nothing beside
them, and with. What is kept is the ratio of the 99th of 100 waits in two blocks that follow one another.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from atoll.ipc.attach import Node, connect
from atoll.ipc.system.state import Retention, State, Write

from ..frame import Figure
from . import depth
from .booted import HEAD, KEYSPACE, Booted

RATE = 500
CLIENTS = 8
SECONDS = 3.0
ROUNDS = 5
KEYS = 20_000
OLD = 1_000_000
"""Versions that are replaced, and given up in the blocks beside compaction."""
MADE = (
    "The old versions are made before, in transactions of {rows} rows. The last round lasts until all of them are gone, "
    "and has the middle of its {blocks} blocks; compaction rests four times as long as it works."
)
BACKED_UP = 200_000
"""Revisions, of a row each."""
AT_ONCE = 500
"""Commits in flight while versions are made."""
MOST = 2.0
COMPACTING = f"{RATE} txn/s while {OLD:,} old versions are compacted"
BACKING_UP = f"{RATE} txn/s while {BACKED_UP:,} revisions are backed up"
TAKE = (sys.executable, "-P", "-m", "atoll.servers.state.backup", "take")
IMAGE = HEAD.format(keyspace=KEYSPACE).replace(
    "needs = {}", "needs = { config = { config = { grace = 0.0, compact_every = 0.05 } } }"
)


def compacting(scratch: Path) -> list[Figure]:
    """Each round measures while all of the past is kept, and while what is old goes: for a block, since a pass ends at its
    next step where the past is to be kept again, and in the last round until it has removed all."""
    booted = Booted(scratch, IMAGE, "compacted")
    alone, beside = [], []
    with booted.attached() as node:
        admin, store = node.open("state", State), node.keyspace(KEYSPACE)
        for version in range(OLD // KEYS + 1):
            depth.write_every(store, KEYS, b"%d" % version * 20)
        with Clients(booted.folder) as clients:
            for number in range(ROUNDS):
                before = store.horizon.now().versions
                alone.append(clients.p99())
                if store.horizon.now().versions != before:
                    raise RuntimeError("versions were removed while all were to be kept")
                admin.make_keyspace.now(KEYSPACE, Retention(versions=1))
                blocks = list(_until_gone(store, clients) if number == ROUNDS - 1 else [clients.p99()])
                beside.append(statistics.median(blocks))
                admin.make_keyspace.now(KEYSPACE, Retention())
            seconds = (ROUNDS - 1 + len(blocks)) * SECONDS
            removed = store.horizon.now().versions
    first, *others = figures(COMPACTING, alone, beside, clients)
    return [
        msgspec.structs.replace(first, note=MADE.format(rows=depth.AT_ONCE, blocks=len(blocks))),
        *others,
        Figure(name=f"{COMPACTING}: versions removed a second", value=removed / seconds, unit="1/s"),
    ]


def _until_gone(store: State, clients: "Clients") -> Iterator[float]:
    """Blocks, one after the other, until no version is left that was old before the first: they go in the order in which
    they were replaced."""
    removed = store.horizon.now().versions
    if removed >= OLD:
        raise RuntimeError(f"all {OLD:,} old versions were removed before the last round")
    while removed < OLD:
        yield clients.p99()
        before, removed = removed, store.horizon.now().versions
        if removed == before:
            raise RuntimeError(f"of {OLD:,} old versions {before:,} were removed, and none in a whole block")


def backing_up(scratch: Path) -> list[Figure]:
    """Each round measures alone, and beside a first backup into a new folder."""
    booted = Booted(scratch, name="backed up")
    alone, beside, took = [], [], []
    with booted.attached() as node:
        make_old(node.keyspace(KEYSPACE), BACKED_UP)
        with Clients(booted.folder) as clients:
            for number in range(ROUNDS):
                alone.append(clients.p99())
                folder = scratch / f"backup {number}"
                folder.mkdir()
                begun = time.perf_counter()
                with subprocess.Popen(
                    [*TAKE, str(folder), "--node", str(booted.folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                ) as backup:
                    assert backup.stdin is not None and backup.stdout is not None
                    backup.stdin.write("node\n")
                    backup.stdin.flush()
                    while not any((folder / "rows").glob("part")):
                        time.sleep(0.01)
                    beside.append(clients.p99())
                    backup.stdout.readline()
                    took.append(time.perf_counter() - begun)
                    backup.communicate()  # it hears that it is not to count
    seconds = statistics.median(took)
    return [
        *figures(BACKING_UP, alone, beside, clients),
        Figure(name=f"{BACKING_UP}: the backup of the rows", value=seconds, unit="s", rounds=ROUNDS),
    ]


class Clients:
    """Programs that commit at a rate, while they are asked to."""

    def __init__(self, folder: Path) -> None:
        self._nodes: list[Node] = [connect(str(folder)) for _ in range(CLIENTS)]
        self._stores = [node.keyspace(KEYSPACE) for node in self._nodes]
        self.blocks = self.commits = 0

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.close()

    def p99(self) -> float:
        """The 99th of 100 waits over one block, in seconds."""
        waits: list[float] = []
        until = time.perf_counter() + SECONDS
        threads = [
            threading.Thread(target=_commits, args=(store, number, until, waits))
            for number, store in enumerate(self._stores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.blocks += 1
        self.commits += len(waits)
        return statistics.quantiles(waits, n=100)[98]


def _commits(store: State, client: int, until: float, waits: list[float]) -> None:
    due = time.perf_counter() + client / RATE
    value = os.urandom(100)
    number = 0
    while (now := time.perf_counter()) < until:
        if due > now:
            time.sleep(due - now)
        due = max(due, now) + CLIENTS / RATE
        start = time.perf_counter()
        store.commit.now([Write(b"client %d %d" % (client, number % 100), value)])
        waits.append(time.perf_counter() - start)
        number += 1


def make_old(store: State, count: int) -> None:
    """So many commits, each of which replaces a version once all keys are there."""
    value = os.urandom(60)
    for first in range(0, count, AT_ONCE):
        begun = [
            store.commit.start([Write(b"%08d" % ((first + each) * 7919 % KEYS), value)])
            for each in range(min(AT_ONCE, count - first))
        ]
        for each in begun:
            each.result()


def figures(
    row: str, alone: list[float], beside: list[float], clients: Clients, most: float = MOST
) -> list[Figure]:
    ratios = [one / other for one, other in zip(beside, alone, strict=True)]
    ratio = statistics.median(ratios)
    return [
        Figure(
            name=f"{row}: 99 of 100 commits",
            value=statistics.median(beside) * 1e3,
            unit="ms",
            against="alone",
            ratio=ratio,
            least=min(ratios),
            greatest=max(ratios),
            goal=f"<= {most:g} x",
            holds=ratio <= most,
            rounds=len(ratios),
        ),
        Figure(
            name=f"{row}: transactions a second",
            value=clients.commits / (clients.blocks * SECONDS),
            unit="1/s",
        ),
        Figure(name=f"{row}: alone", value=statistics.median(alone) * 1e3, unit="ms", rounds=len(alone)),
    ]


Measure = Callable[[Path], list[Figure]]
ROWS: dict[str, Measure] = {COMPACTING: compacting, BACKING_UP: backing_up}
