"""Steps of a workflow, and plain calls that commit as much, at a server of a booted node."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..frame import Block, Contestant
from ..placement import Placement
from ..steps.interface import Steps
from .booted import HEAD, KEYSPACE, Booted

SERVER = """
[server.steps]
package = "{package}"
level = "process"
needs = {{ rows = {{ keyspace = "{keyspace}", rights = ["read", "write"] }} }}
"""


def image() -> str:
    """The store, and one server with a durable method."""
    package = Path(__file__).resolve().parents[1] / "steps"
    return HEAD.format(keyspace=KEYSPACE) + SERVER.format(package=package, keyspace=KEYSPACE)


def steps(booted: Booted, name: str) -> Contestant:
    """One workflow of as many steps as a block has, its beginning and its end among them."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            run = node.open("steps", Steps).run.now

            def block(n: int) -> float:
                start = time.perf_counter()
                run(n)
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_, least=20)


def calls(booted: Booted, name: str) -> Contestant:
    """A client that waits for each of its calls."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            write = node.open("steps", Steps).write.now

            def block(n: int) -> float:
                start = time.perf_counter()
                for key in range(n):
                    write(key)
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_)
