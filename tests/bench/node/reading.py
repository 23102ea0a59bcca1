"""What commits wait for beside those who read: a scan, SQL, a thousand watchers."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import trio

from atoll.ipc.attach import connect
from atoll.ipc.system.state import State

from .. import children
from ..frame import Figure
from . import past
from .booted import HEAD, KEYSPACE, Booted

VERSIONS = 100_000
"""Of the keyspace that is read; its keys are fewer."""
ROUNDS = 5
MOST = 1.5
PAGE = 1000
WATCHERS = 1000
IMAGE = HEAD.format(keyspace=KEYSPACE) + "\n[server.state.readers]\nmost = 1\nabove = 1\n"
SQL = (
    str(Path(sys.executable).parent / "atoll"),
    "sql",
    f"select count(*), max(_revision) from {KEYSPACE}",
    "--node",
)


def main(arguments: list[str]) -> None:
    """A program that reads without end, or watches, until it is ended."""
    what, folder = arguments
    {"scan": _scan, "ask": _ask, "watch": _watch}[what](folder)


def _scan(folder: str) -> None:
    with connect(folder) as node:
        store, start = node.keyspace(KEYSPACE), b""
        children.ready()
        while True:
            page = store.range.now(start, b"\xff", PAGE)
            start = page.items[-1].key + b"\0" if page.more else b""


def _ask(folder: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which ends the command that runs, too
    children.ready()
    while True:
        subprocess.run([*SQL, folder], check=True, stdout=subprocess.DEVNULL)


def _watch(folder: str) -> None:
    trio.run(_watch_all, folder)


async def _watch_all(folder: str) -> None:
    async with connect(folder) as node, trio.open_nursery() as nursery:
        store = node.keyspace(KEYSPACE)
        since = await store.head()
        for number in range(WATCHERS):
            nursery.start_soon(_wait, store, since, b"watched/%04d/" % number)
        children.ready()


async def _wait(store: State, since: int, prefix: bytes) -> None:
    async for _ in store.watch(since, prefix):
        pass


def beside(row: str, what: str, scratch: Path) -> list[Figure]:
    """Each round measures alone, and while a program reads."""
    booted = Booted(scratch, IMAGE, f"beside {what}")
    alone, with_it = [], []
    with booted.attached() as node:
        past.make_old(node.keyspace(KEYSPACE), VERSIONS)
        with past.Clients(booted.folder) as clients:
            for _ in range(ROUNDS):
                alone.append(clients.p99())
                with children.served("node.reading", what, booted.folder):
                    with_it.append(clients.p99())
    return past.figures(row, alone, with_it, clients, MOST)


READERS = {
    f"{past.RATE} txn/s beside a scan without end": "scan",
    f"{past.RATE} txn/s beside SQL without end": "ask",
    f"{past.RATE} txn/s beside {WATCHERS:,} watchers of other keys": "watch",
}
ROWS: dict[str, past.Measure] = {row: partial(beside, row, what) for row, what in READERS.items()}
