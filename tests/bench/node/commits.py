"""Durable transactions and reads through the store of a booted node."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from atoll.ipc.system.state import Write

from .. import children
from ..frame import Block, Contestant
from ..placement import Placement
from ..store.work import KEYS, Work
from .booted import KEYSPACE, Booted
from .committer import fill

CLIENTS = 4


def one(booted: Booted, name: str) -> Contestant:
    """A client that waits for each transaction."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            store, work = node.keyspace(KEYSPACE), Work()
            fill(store)
            commit = store.commit.now

            def block(n: int) -> float:
                took = 0.0
                for _ in range(n):
                    _, key, value = work.next()
                    start = time.perf_counter()
                    commit([Write(key, value)])
                    took += time.perf_counter() - start
                return took

            yield block

    return Contestant(name, open_)


def many(booted: Booted, name: str, outstanding: int) -> Contestant:
    """Client processes that keep so many transactions outstanding, all of them together."""
    each = outstanding // CLIENTS

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.lease(), ExitStack() as running:
            clients = [
                running.enter_context(children.served("node.committer", booted.folder, each, seed))
                for seed in range(CLIENTS)
            ]

            def block(n: int) -> float:
                start = time.perf_counter()
                for client in clients:
                    assert client.stdin is not None
                    client.stdin.write(f"{n // CLIENTS}\n".encode())
                    client.stdin.flush()
                for client in clients:
                    assert client.stdout is not None
                    if not client.stdout.read(1):
                        raise RuntimeError("a client ended in the middle of a block")
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_, least=outstanding)


def reads(booted: Booted, name: str) -> Contestant:
    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            store = node.keyspace(KEYSPACE)
            fill(store)
            keys = [b"rating/%08d" % number for number in range(KEYS // 10)]
            get = store.get.now

            def block(n: int) -> float:
                start = time.perf_counter()
                for i in range(n):
                    get(keys[i % len(keys)])
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_)
