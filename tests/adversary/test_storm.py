"""Attacks that go on, on real processes: none falls, none hangs, the honest get their replies, and who is accused did it.

The short form is a second each. The long form is ten minutes of attack each, and says what honest callers waited
meanwhile, without, and beside honest programs; `python -m tests.adversary 60` is between the two."""

import random

import pytest

from .attacks import ATTACKS
from .storm import storm

LONG = 600.0
"""Seconds of attack."""
GROWN = 4096
"""KiB that a server may have grown by over thousands of attacks: what its allocator keeps, and no leak."""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nobody_and_its_doer_is_named(name: str) -> None:
    assert storm(name, 1.0, seed=1, compare=False).calls


@pytest.mark.soak
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_for_long_slows_nobody_down_threefold(name: str) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    report = storm(name, LONG, seed=seed, compare=True)
    print(report, f"(seed {seed})")
    assert report.ratio <= 3
    assert report.grown[0] <= 0
    assert report.grown[1] < GROWN
