"""Worlds by seed: each is lived through twice alike, and nothing in them breaks what must hold.

`make simulate SEEDS=1000` does the same for as many as one likes.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .run import one

KEPT = tomllib.loads((Path(__file__).parent / "seeds.toml").read_text())["seed"]
"""Seeds that found something, with what they found."""
SOON = range(1, 3)
LONG = range(1, 1001)


def lived(seed: int) -> None:
    verdict = one(seed)
    assert not verdict.broken, "\n".join([f"replay it by `{verdict.command}`:", *verdict.broken])


@pytest.mark.parametrize("seed", SOON)
def test_nothing_breaks(seed: int) -> None:
    lived(seed)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: str(kept["number"]))
def test_what_a_seed_found_stays_mended(kept: dict[str, object]) -> None:
    lived(int(str(kept["number"])))


@pytest.mark.soak
def test_nothing_breaks_in_a_thousand_worlds() -> None:
    for seed in LONG:
        lived(seed)


def test_a_seed_has_one_way() -> None:
    """In two processes with two hash seeds: the same hash over all events."""
    ways = set()
    for hashing in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "2"]
        told = subprocess.run(
            command,
            env=os.environ | {"PYTHONHASHSEED": hashing},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ways.add(told.stdout.splitlines()[-1])
    assert len(ways) == 1 and ways.pop().startswith("hash ")
