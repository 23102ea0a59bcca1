"""Krippendorff's alpha against values worked out by hand and by its definition."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.servers.feedback.agreement import Judgements, alpha
from atoll.servers.feedback.records import Preference, Rating, Record


def rating(rater: str, text: str, score: float) -> Rating:
    return Rating(rater=rater, role="crowd", trust=0.5, task="t", text=text, score=score)


def preference(rater: str, chosen: str, rejected: str) -> Preference:
    return Preference(rater=rater, role="crowd", trust=0.5, task="t", chosen=chosen, rejected=rejected)


def by_definition(units: list[list[float]]) -> float | None:
    values = [value for unit in units for value in unit]
    observed = sum(
        sum((a - b) ** 2 for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in units
    ) / len(values)
    expected = sum((a - b) ** 2 for a, b in permutations(values, 2)) / (len(values) * (len(values) - 1))
    return None if expected < 1e-9 else 1 - observed / expected


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=5), min_size=1, max_size=8)
)
def test_alpha_is_what_its_definition_says(units: list[list[float]]) -> None:
    wanted = by_definition(units)
    got = alpha(units)
    assert got is None if wanted is None else got == pytest.approx(wanted)


def test_agreement_of_a_task() -> None:
    judgements = Judgements("t")
    said: list[Record] = [
        rating("a", "x", 1.0),
        rating("b", "x", 1.0),
        rating("a", "y", 0.0),
        rating("b", "y", 0.0),
        rating("b", "y", 0.0),
        rating("a", "alone", 0.5),
        preference("a", "p", "q"),
        preference("b", "p", "q"),
        preference("c", "q", "p"),
    ]
    for record in said:
        judgements.add(record)
    result = judgements.result()
    assert (result.items, result.ratings, result.alpha) == (2, 4, 1.0)
    assert result.compared == 1
    assert result.same_order == pytest.approx(1 / 3)


def test_nothing_to_compare_is_none() -> None:
    judgements = Judgements("t")
    judgements.add(rating("a", "x", 1.0))
    result = judgements.result()
    assert (result.items, result.alpha, result.same_order) == (0, None, None)
