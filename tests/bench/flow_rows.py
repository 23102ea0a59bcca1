"""Durable calls: a step of a workflow beside a plain call that commits as much, and beside DBOS Transact."""

from pathlib import Path

from .frame import Contestant, Goal, Race, Row
from .node import steps
from .node.booted import Booted
from .peers import dbos_sqlite

STEP, CALL, DBOS = "a step of a workflow", "a plain call", "DBOS Transact on SQLite"


def rows(scratch: Path) -> list[Row]:
    """A step's cost, and how many a second one workflow does."""
    booted = Booted(scratch, steps.image(), name="steps")
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
            contestants=[steps.steps(booted, STEP), Contestant(DBOS, dbos_sqlite.steps, least=20)],
            subject=STEP,
            goals=[Goal(">=", 7, DBOS)],
            seconds=0.6,
            bias="DBOS's steps do nothing and are recorded; Atoll's write a row as well.",
        ),
    ]
