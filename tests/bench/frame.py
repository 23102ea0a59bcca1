"""The frame: a row is a race of contestants over interleaved blocks.

The machines this runs on change speed within a run (a cache line between two cores costs 0.07 µs in one
minute and 0.4 in the next), so a figure alone says little. What is kept is the ratio of two figures taken
in one round:

- Every contestant of a row is opened at once and stays open. A round gives each of them one block, in an
  order that turns by one each round, so that none always runs after the same neighbour. K rounds make the
  row.
- The size of a block is set by a trial: as many operations as fill `seconds`. A warm-up of the same kind, not
  timed, goes before each block, since caches and sleeping peers belong to whoever ran before.
- A contestant's value is the median over its blocks. A ratio is the median over rounds of (subject / other of
  that round), printed with its least and greatest.

A contestant that cannot be had here raises `Unavailable` with a sentence; its row is printed without it. A
row whose subject is unavailable has no verdicts. Nothing is ever filled in.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from .placement import ANYWHERE, Placement, pinned

Block = Callable[[int], float]
"""Does n operations, one after the other or as the row says, and returns the seconds they took."""

Open = Callable[[Placement], AbstractContextManager[Block]]

Unit = Literal["ns", "µs", "ms", "s", "1/s", "MiB/s", "%", "x", "count", "MiB"]
_PER_OPERATION: dict[str, float] = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "s": 1.0}


class Unavailable(Exception):
    """This contestant cannot run here; the text says why and what would change that."""


@dataclass(frozen=True)
class Contestant:
    """`open(placement)` is a context manager that yields a block; its serving side lives as long as that."""

    name: str
    open: Open
    operations: float = 1.0
    """What one operation of the block counts for (items in a batch, MiB in a hand-over)."""
    least: int = 1
    """Operations come in multiples of this (the transactions of one commit)."""


@dataclass(frozen=True)
class Goal:
    """What the ratio of subject to `against` must be; where `against` is None, the subject's plain value."""

    direction: Literal["<=", ">="]
    bound: float
    against: str | None = None

    def holds(self, figure: float) -> bool:
        return figure <= self.bound if self.direction == "<=" else figure >= self.bound

    def __str__(self) -> str:
        return f"{self.direction} {self.bound:g}{' x' if self.against else ''}"


@dataclass(frozen=True)
class Race:
    """Contestants in interleaved blocks. Goals speak of `subject`; the first other one is the floor."""

    group: str
    name: str
    unit: Unit
    contestants: Sequence[Contestant]
    subject: str
    goals: Sequence[Goal] = ()
    placement: Placement = ANYWHERE
    rounds: int = 9
    seconds: float = 0.05
    """Length of a block, aimed at."""
    warm: float = 0.1
    """Untimed operations before each block, as a share of the block."""
    bias: str = ""
    """Whom the way it is measured favours, in a sentence."""


@dataclass(frozen=True)
class Survey:
    """A row that is no race: `measure` returns its figures (a longest wait, a share of a core, a count)."""

    group: str
    name: str
    measure: Callable[[], list["Figure"]]
    bias: str = ""


Row = Race | Survey


class Figure(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the table. `ratio` is value / the value of `against`, as the median over rounds."""

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    goal: str | None = None
    holds: bool | None = None
    least: float | None = None
    """The least and greatest of what `ratio` is the median of (of `value`, where there is no ratio)."""
    greatest: float | None = None
    rounds: int | None = None
    placement: str | None = None
    note: str | None = None


class Absent(msgspec.Struct):
    """A contestant or row that did not run, and why."""

    name: str
    reason: str


@dataclass
class Outcome:
    """What a row gave."""

    figures: list[Figure] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)


@dataclass
class _Running:
    contestant: Contestant
    block: Block
    n: int
    took: list[float] = field(default_factory=list)


def run(row: Row, scale: float = 1.0) -> Outcome:
    """Runs one row; `scale` shortens or lengthens its number of rounds."""
    if isinstance(row, Survey):
        try:
            return Outcome(figures=row.measure())
        except Unavailable as reason:
            return Outcome(absent=[Absent(row.name, str(reason))])
    return _race(row, max(3, round(row.rounds * scale)))


def _race(row: Race, rounds: int) -> Outcome:
    outcome = Outcome()
    with ExitStack() as opened:
        running = []
        for contestant in row.contestants:
            try:
                block = opened.enter_context(contestant.open(row.placement))
            except Unavailable as reason:
                outcome.absent.append(Absent(f"{row.name}: {contestant.name}", str(reason)))
                continue
            with pinned(row.placement.client):
                running.append(_Running(contestant, block, _size(block, contestant.least, row.seconds)))
        for turn in range(rounds if running else 0):
            first = turn % len(running)
            for entry in running[first:] + running[:first]:
                with pinned(row.placement.client):
                    if warm := int(entry.n * row.warm) // entry.contestant.least * entry.contestant.least:
                        entry.block(warm)
                    entry.took.append(entry.block(entry.n) / entry.n)
    outcome.figures = _figures(row, running, rounds)
    return outcome


def _size(block: Block, least: int, seconds: float) -> int:
    """Operations that fill a block, in multiples of `least`: a trial grows until it is long enough."""
    n = least
    while True:
        took = block(n)
        if took >= seconds / 8:
            return max(1, round(n * seconds / took / least)) * least
        n *= 2 if took > seconds / 64 else 8


def _value(contestant: Contestant, unit: str, seconds: float) -> float:
    if unit in _PER_OPERATION:
        return seconds / contestant.operations * _PER_OPERATION[unit]
    return contestant.operations / seconds


def _figures(row: Race, running: list[_Running], rounds: int) -> list[Figure]:
    values = {r.contestant.name: [_value(r.contestant, row.unit, s) for s in r.took] for r in running}
    floor = next((name for name in values if name != row.subject), None)
    lines: list[Figure] = []
    if row.subject in values:
        goals: Sequence[Goal | None] = row.goals or [None]
        lines += [_line(row, row.subject, goal.against if goal else floor, values, goal) for goal in goals]
    others = [name for name in values if name != row.subject]
    lines += [_line(row, name, None if name == floor else floor, values, None) for name in others]
    for line in lines:
        line.rounds = rounds
    return lines


def _line(
    row: Race, name: str, against: str | None, values: dict[str, list[float]], goal: Goal | None
) -> Figure:
    own = values[name]
    figure = Figure(
        name=f"{row.name}: {name}",
        value=statistics.median(own),
        unit=row.unit,
        against=against,
        goal=str(goal) if goal else None,
        placement=row.placement.name,
        note=row.bias or None,
    )
    if against is None:
        figure.least, figure.greatest = min(own), max(own)
        figure.holds = goal.holds(figure.value) if goal else None
    elif against in values:
        ratios = [mine / other for mine, other in zip(own, values[against], strict=True)]
        figure.ratio, figure.least, figure.greatest = statistics.median(ratios), min(ratios), max(ratios)
        figure.holds = goal.holds(figure.ratio) if goal else None
    return figure
