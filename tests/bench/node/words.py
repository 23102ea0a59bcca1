"""Sealed and plain rows of one server of a booted node."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..frame import Block, Contestant
from ..placement import Placement
from ..words.interface import Words
from .booted import HEAD, KEYSPACE, Booted

What = Literal["write", "read", "scan"]
AT_ONCE = 100
"""Rows of a scan."""
ROWS = 1000
SERVERS = """
[keyspace.private]
private = true
[keyspace.keys]

[server.keys.needs]
keyring = {{ folder = "keyring" }}
root = {{ folder = "root" }}
rows = {{ keyspace = "keys", rights = ["read", "write"] }}

[server.words]
package = "{package}"
level = "process"

[server.words.needs]
plain = {{ keyspace = "{keyspace}", rights = ["read", "write"] }}
sealed = {{ keyspace = "private", rights = ["read", "write"] }}
"""


def image() -> str:
    package = Path(__file__).resolve().parents[1] / "words"
    return HEAD.format(keyspace=KEYSPACE) + SERVERS.format(package=package, keyspace=KEYSPACE)


def words(booted: Booted, name: str, what: What, *, sealed: bool) -> Contestant:
    """A client that waits for each of its calls. All rows are there before the first block."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with booted.attached() as node:
            server = node.open("words", Words)
            for written in [server.write.start(key, sealed) for key in range(ROWS)]:
                written.result()

            def block(n: int) -> float:
                start = time.perf_counter()
                for key in range(n):
                    if what == "write":
                        server.write.now(key, sealed)
                    elif what == "read":
                        server.read.now(key, sealed)
                    else:
                        server.scan.now(key % (ROWS - AT_ONCE), AT_ONCE, sealed)
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_)
