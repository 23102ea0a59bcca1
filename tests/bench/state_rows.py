"""Durable transactions beside the disk, LMDB, SQLite and PostgreSQL."""

from functools import partial
from pathlib import Path

from .frame import Goal, Race, Row, Survey
from .node import batches, commits, depth, past, reading, watching
from .node.booted import KEYSPACE, Booted
from .store import disk, etcd, grouped, lmdb_bare, postgres, sqlite

ATOLL, LMDB, FSYNC, SQLITE = "atoll", "bare LMDB", "pwrite + fdatasync", "SQLite WAL FULL"
ETCD = "etcd, 3 members"
LAYER = "atoll's store, no channel"
GROUP = 64
BIAS = (
    "LMDB, SQLite and the disk are called in this process, PostgreSQL by its own C client over a Unix socket "
    "with three rows in one statement, Atoll through a channel from other processes."
)


def rows(scratch: Path) -> list[Row]:
    """One client's latency, 64 outstanding transactions' rate, rows by the hundred, and reads; how late a watcher is; what
    commits wait for beside compaction, a backup and readers."""
    clusters = postgres.Cluster(scratch), etcd.Cluster(scratch)
    booted = Booted(scratch, name="store")
    beside = [
        Survey("state", name, partial(measure, scratch))
        for name, measure in (past.ROWS | reading.ROWS).items()
    ]
    return [
        _one(scratch, booted, *clusters),
        _many(scratch, booted, *clusters),
        _batches(booted, *clusters),
        _read(scratch, booted),
        _depths(Booted(scratch, depth.IMAGE, "deep")),
        Survey("state", "watch: how late a change is", partial(watching.behind, scratch)),
        *beside,
    ]


def _one(scratch: Path, booted: Booted, cluster: postgres.Cluster, members: etcd.Cluster) -> Row:
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
            etcd.contestant(members, ETCD, 1),
        ],
        subject=ATOLL,
        goals=[
            Goal("<=", 1.15, LMDB),
            Goal("<=", 2, FSYNC),
            Goal("<=", 1, "PostgreSQL, 1 connection"),
            Goal("<=", 1, ETCD),
        ],
        seconds=0.25,
        bias=BIAS,
    )


def _many(scratch: Path, booted: Booted, cluster: postgres.Cluster, members: etcd.Cluster) -> Row:
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
            etcd.contestant(members, ETCD, GROUP),
        ],
        subject=ATOLL,
        goals=[
            Goal(">=", 0.6, LMDB),
            Goal(">=", 3, "PostgreSQL, 64 connections"),
            Goal(">=", 5, SQLITE),
            Goal(">=", 5, ETCD),
        ],
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


def _batches(booted: Booted, cluster: postgres.Cluster, members: etcd.Cluster) -> Row:
    return Race(
        group="state",
        name=f"rows in transactions of {batches.ROWS}",
        unit="1/s",
        contestants=[
            batches.contestant(booted, ATOLL),
            postgres.imports(cluster, batches.OUTSTANDING, batches.KEYS, batches.ROWS),
            batches.at_etcd(members, ETCD),
        ],
        subject=ATOLL,
        goals=[Goal(">=", 50_000)],
        seconds=0.5,
        bias=f"One client with {batches.OUTSTANDING} outstanding; keys of one transaction lie beside each other.",
    )


def _depths(booted: Booted) -> Row:
    small, large = f"{depth.SMALL:,} keys", f"{depth.LARGE:,} keys"
    depths = depth.Depths(booted)
    contestants = [
        depths.contestant(f"{size}, {'an hour ago' if past_ else 'now'}", keyspace, keys, past=past_)
        for size, keyspace, keys in ((small, KEYSPACE, depth.SMALL), (large, "large", depth.LARGE))
        for past_ in (False, True)
    ]
    return Race(
        group="state",
        name=f"read of one key with {depth.VERSIONS} versions",
        unit="µs",
        contestants=contestants,
        subject=f"{large}, an hour ago",
        goals=[Goal("<=", 1.5, f"{large}, now"), Goal("<=", 1.5, f"{small}, an hour ago")],
        bias="Filling takes minutes; keys are drawn at random, and all of it fits the page cache.",
    )
