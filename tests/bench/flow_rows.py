"""Durable calls: a step of a workflow beside a plain call that commits as much, and beside DBOS Transact."""

from functools import partial
from pathlib import Path

from .frame import Contestant, Goal, Race, Row
from .node import steps
from .node.booted import Booted
from .peers import dbos_transact
from .store import postgres

STEP, CALL = "a step of a workflow", "a plain call"
ON_SQLITE, ON_POSTGRES = "DBOS Transact on SQLite", "DBOS Transact on PostgreSQL"


def rows(scratch: Path) -> list[Row]:
    """A step's cost, and how many a second one workflow does."""
    booted, cluster = Booted(scratch, steps.image(), name="steps"), postgres.Cluster(scratch)
    return [
        Race(
            group="flow",
            name="durable step that writes one row",
            unit="µs",
            contestants=[steps.steps(booted, STEP), steps.calls(booted, CALL)],
            subject=STEP,
            goals=[Goal("<=", 1.3, CALL)],
            seconds=0.4,
            bias="A call comes from another process, a step from within the server; a workflow's beginning and end count as "
            "its steps'.",
        ),
        Race(
            group="flow",
            name="steps of one workflow",
            unit="1/s",
            contestants=[
                steps.steps(booted, STEP),
                Contestant(ON_SQLITE, dbos_transact.on_sqlite, least=20),
                Contestant(ON_POSTGRES, partial(dbos_transact.on_postgres, cluster), least=20),
            ],
            subject=STEP,
            goals=[Goal(">=", 7, ON_SQLITE), Goal(">=", 4, ON_POSTGRES)],
            seconds=0.6,
            bias="DBOS's steps do nothing and are recorded; Atoll's write a row as well. PostgreSQL is set as for the "
            "rows of transactions, and reached by its Unix socket.",
        ),
    ]
