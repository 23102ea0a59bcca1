"""SQLite in this process: WAL, synchronous=FULL, one transaction a commit (it has no group commit)."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..frame import Block, Contestant
from ..placement import Placement
from .work import KEYS, Work

SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA cache_size = -65536;
CREATE TABLE history (revision INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL);
CREATE TABLE latest (key BLOB NOT NULL, revision INTEGER NOT NULL, PRIMARY KEY (key, revision)) WITHOUT ROWID;
CREATE TABLE provenance (revision INTEGER PRIMARY KEY, who BLOB NOT NULL);
"""
HISTORY = "INSERT INTO history VALUES (?, ?, ?)"
LATEST = "INSERT INTO latest VALUES (?, ?)"
PROVENANCE = "INSERT INTO provenance VALUES (?, ?)"


def contestant(scratch: Path, name: str) -> Contestant:
    """Durable transactions of three rows, one client."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        path = scratch / "peer.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript(SCHEMA)
            execute, work, who = connection.execute, Work(), bytes(32)

            def write(size: int) -> None:
                for revision, key, value in work.group(size):
                    execute(HISTORY, (revision, key, value))
                    execute(LATEST, (key, revision))
                    execute(PROVENANCE, (revision, who))

            def block(n: int) -> float:
                took = 0.0
                for _ in range(n):
                    start = time.perf_counter()
                    execute("BEGIN IMMEDIATE")
                    write(1)
                    execute("COMMIT")
                    took += time.perf_counter() - start
                return took

            execute("BEGIN IMMEDIATE")
            write(KEYS)
            execute("COMMIT")
            yield block
        for left in scratch.glob("peer.sqlite*"):
            left.unlink()

    return Contestant(name, open_)
