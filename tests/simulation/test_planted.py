"""Bugs put in on purpose are found, each within a few worlds."""

import pytest

from .planted import PLANTED
from .run import one

WITHIN = 80
"""Seeds. Most are found in the first five."""
QUICK = ("no_intent", "entry_stays", "entry_on_any_channel", "no_second_look", "no_wait_for_windows")


def found_at(plant: str) -> int:
    """The first seed whose world says what is wrong; 0: none does."""
    bug, said = PLANTED[plant]
    worlds = (one(seed, plant=bug) for seed in range(1, WITHIN + 1))
    return next((world.seed for world in worlds if any(said in each for each in world.broken)), 0)


@pytest.mark.parametrize("plant", QUICK)
def test_a_planted_bug_is_found_soon(plant: str) -> None:
    assert found_at(plant)


@pytest.mark.soak
@pytest.mark.parametrize("plant", [plant for plant in PLANTED if plant not in QUICK])
def test_a_planted_bug_is_found(plant: str) -> None:
    assert found_at(plant)
