"""Durable transactions beside the disk, LMDB, SQLite and PostgreSQL."""

from functools import partial
from pathlib import Path

from .frame import Goal, Race, Row, Survey
from .node import commits, past, reading
from .node.booted import Booted
from .store import disk, grouped, lmdb_bare, postgres, sqlite

ATOLL, LMDB, FSYNC, SQLITE = "atoll", "bare LMDB", "pwrite + fdatasync", "SQLite WAL FULL"
LAYER = "atoll's store, no channel"
GROUP = 64
BIAS = (
    "LMDB, SQLite and the disk are called in this process, PostgreSQL by its own C client over a Unix socket "
    "with three rows in one statement, Atoll through a channel from other processes."
)


def rows(scratch: Path) -> list[Row]:
    """One client's latency, 64 outstanding transactions' rate, and a read; what commits wait for beside compaction, a
    backup and readers."""
    cluster, booted = postgres.Cluster(scratch), Booted(scratch, name="store")
    beside = [
        Survey("state", name, partial(measure, scratch))
        for name, measure in (past.ROWS | reading.ROWS).items()
    ]
    return [_one(scratch, booted, cluster), _many(scratch, booted, cluster), _read(scratch, booted), *beside]


def _one(scratch: Path, booted: Booted, cluster: postgres.Cluster) -> Row:
    return Race(
        group="state",
        name="durable transaction, one client",
        unit="µs",
        contestants=[
            commits.one(booted, ATOLL),
            lmdb_bare.commits(scratch, LMDB, grouped.State, 1),
            grouped.commits(scratch, LAYER, 1),
            disk.contestant(scratch, FSYNC),
            disk.commit_writes(scratch, "LMDB's writes alone"),
            sqlite.contestant(scratch, SQLITE),
            *postgres.contestants(cluster, [1]),
        ],
        subject=ATOLL,
        goals=[Goal("<=", 1.15, LMDB), Goal("<=", 2, FSYNC)],
        seconds=0.25,
        bias=BIAS,
    )


def _many(scratch: Path, booted: Booted, cluster: postgres.Cluster) -> Row:
    return Race(
        group="state",
        name="durable transactions, 64 outstanding",
        unit="1/s",
        contestants=[
            commits.many(booted, ATOLL, GROUP),
            lmdb_bare.commits(scratch, LMDB, grouped.State, GROUP),
            grouped.commits(scratch, LAYER, GROUP),
            sqlite.contestant(scratch, SQLITE),
            *postgres.contestants(cluster, [8, 64]),
        ],
        subject=ATOLL,
        goals=[Goal(">=", 0.6, LMDB), Goal(">=", 3, "PostgreSQL, 64 connections"), Goal(">=", 5, SQLITE)],
        seconds=0.4,
        bias=BIAS + " SQLite has no group commit: 64 writers would get one writer's rate at best.",
    )


def _read(scratch: Path, booted: Booted) -> Row:
    return Race(
        group="state",
        name="read of one key",
        unit="µs",
        contestants=[commits.reads(booted, ATOLL), lmdb_bare.reads(scratch, LMDB, grouped.State)],
        subject=ATOLL,
        bias="Bare LMDB reads in the caller's own process.",
    )
