"""The frame's arithmetic and order, on contestants whose blocks say how long they took."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .frame import Block, Contestant, Figure, Goal, Outcome, Race, Survey, Unavailable, run
from .placement import Placement


class Scripted:
    """Blocks that take `seconds` an operation, and a log of who ran."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.open = 0

    def contestant(self, name: str, *seconds: float, least: int = 1, operations: float = 1.0) -> Contestant:
        turns = iter(range(10_000))

        @contextmanager
        def open_(placement: Placement) -> Iterator[Block]:
            self.open += 1

            def block(n: int) -> float:
                assert n % least == 0
                self.log.append(name)
                return n * seconds[min(next(turns), len(seconds) - 1)]

            yield block
            self.open -= 1

        return Contestant(name, open_, operations, least)


def missing(name: str) -> Contestant:
    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        raise Unavailable("its package is not installed")
        yield lambda n: 0.0

    return Contestant(name, open_)


def race(
    *contestants: Contestant, goals: tuple[Goal, ...] = (), unit: str = "µs", warm: float = 0.0
) -> Outcome:
    row = Race("g", "row", unit, contestants, "own", goals, rounds=3, seconds=1.0, warm=warm)  # type: ignore[arg-type]
    return run(row)


def named(outcome: Outcome, name: str) -> list[Figure]:
    return [figure for figure in outcome.figures if figure.name == f"row: {name}"]


def test_a_latency_is_seconds_an_operation_and_its_ratio_that_of_the_rounds() -> None:
    script = Scripted()
    outcome = race(
        script.contestant("floor", 0.5), script.contestant("own", 0.75), goals=(Goal("<=", 1.8, "floor"),)
    )
    (own,), (floor,) = named(outcome, "own"), named(outcome, "floor")
    assert (own.value, own.ratio, own.holds, own.goal) == (750_000, 1.5, True, "<= 1.8 x")
    assert (floor.value, floor.ratio, floor.against, floor.holds) == (500_000, None, None, None)


def test_a_rate_counts_what_an_operation_stands_for() -> None:
    script = Scripted()
    contestants = script.contestant("floor", 0.5), script.contestant("own", 1.0, operations=8)
    (own,) = named(race(*contestants, goals=(Goal(">=", 5, "floor"),), unit="1/s"), "own")
    assert (own.value, own.ratio, own.holds) == (8.0, 4.0, False)


def test_a_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    script = Scripted()
    # The first block of each is the trial that sets the size.
    outcome = race(script.contestant("floor", 1, 1, 10, 10), script.contestant("own", 1, 2, 20, 30))
    (own,) = named(outcome, "own")
    assert (own.value, own.ratio, own.least, own.greatest) == (20e6, 2.0, 2.0, 3.0)


def test_blocks_interleave_and_the_order_turns() -> None:
    script = Scripted()
    race(*(script.contestant(name, 1.0) for name in "abc"))
    assert "".join(script.log[3:]) == "abcbcacab"
    assert script.open == 0


def test_blocks_keep_to_multiples() -> None:
    script = Scripted()
    race(script.contestant("own", 0.001, least=64), warm=0.1)
    assert script.log


def test_a_goal_without_a_peer_is_of_the_value_itself() -> None:
    (own,) = named(race(Scripted().contestant("own", 0.5), goals=(Goal(">=", 3),), unit="1/s"), "own")
    assert (own.against, own.ratio, own.goal, own.holds) == (None, None, ">= 3", False)


def test_a_peer_that_is_missing_leaves_a_reason_and_no_verdict() -> None:
    outcome = race(missing("peer"), Scripted().contestant("own", 0.5), goals=(Goal("<=", 2, "peer"),))
    (own,) = named(outcome, "own")
    assert (own.against, own.ratio, own.holds) == ("peer", None, None)
    assert [(absent.name, absent.reason) for absent in outcome.absent] == [
        ("row: peer", "its package is not installed")
    ]


def test_without_its_subject_a_row_shows_the_others_against_the_floor() -> None:
    script = Scripted()
    outcome = race(missing("own"), script.contestant("floor", 0.5), script.contestant("peer", 1.0))
    (peer,) = named(outcome, "peer")
    assert (peer.against, peer.ratio, peer.goal, peer.holds) == ("floor", 2.0, None, None)


def test_a_survey_that_cannot_run_says_why() -> None:
    def measure() -> list[Figure]:
        raise Unavailable("there is one core only")

    assert run(Survey("g", "eight clients", measure)).absent[0].reason == "there is one core only"


@pytest.mark.parametrize(
    ("direction", "figure", "holds"), [("<=", 2.0, True), ("<=", 2.1, False), (">=", 2.0, True)]
)
def test_a_goal_includes_its_bound(direction: str, figure: float, holds: bool) -> None:
    assert Goal(direction, 2.0).holds(figure) is holds  # type: ignore[arg-type]
