"""How much later than its writer a watcher has a change: two programs, and times of one clock."""

import statistics
import sys
import time
from pathlib import Path

from atoll.ipc.attach import connect
from atoll.ipc.system.state import Write

from .. import children
from ..frame import Figure
from ..store.work import VALUE
from .booted import KEYSPACE, Booted

COMMITS = 2000
MOST = 1.0
"""Milliseconds."""


def main(arguments: list[str]) -> None:
    """The watcher: says on its standard output, as 8 bytes each, when it had each change, in ns."""
    with connect(arguments[0]) as node:
        store = node.keyspace(KEYSPACE)
        changes = store.watch.now(store.head.now())
        children.ready()
        for _ in range(COMMITS):
            next(changes)
            sys.stdout.buffer.write(time.monotonic_ns().to_bytes(8, "big"))
        sys.stdout.buffer.flush()
        sys.stdin.readline()
        changes.cancel()


def behind(scratch: Path) -> list[Figure]:
    """From the moment at which the writer has its reply; before it, it counts as less than nothing."""
    booted = Booted(scratch, name="watched")
    told: list[int] = []
    with booted.attached() as node, children.served("node.watching", booted.folder) as watcher:
        store = node.keyspace(KEYSPACE)
        for number in range(COMMITS):
            store.commit.now([Write(b"k%d" % (number % 100), VALUE)])
            told.append(time.monotonic_ns())
        assert watcher.stdout is not None
        raw = watcher.stdout.read(8 * COMMITS)
    had = [int.from_bytes(raw[at : at + 8], "big") for at in range(0, len(raw), 8)]
    late = sorted((there - here) / 1e6 for there, here in zip(had, told, strict=True))
    middle = statistics.median(late)
    return [
        Figure(
            name="watch: a change after its commit's reply", value=middle, unit="ms", least=late[0],
            greatest=late[COMMITS * 99 // 100], goal=f"<= {MOST:g}", holds=middle <= MOST,
            note="the greatest is the 99th of 100",
        )
    ]  # fmt: skip
