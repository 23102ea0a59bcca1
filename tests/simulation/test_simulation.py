"""Worlds by seed: each is lived through twice alike, and nothing in them breaks what must hold.

`make simulate SEEDS=1000` does the same for as many as one likes.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .run import one

KEPT = tomllib.loads((Path(__file__).parent / "seeds.toml").read_text())["seed"]
"""Seeds that found something, with what they found."""
SOON = range(1, 3)
HOUSE = Path(__file__).parents[2]
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


@pytest.mark.parametrize(
    "seed", [2, 5, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(6, 36))]
)
def test_a_seed_has_one_way(seed: int) -> None:
    """In two processes with two hash seeds: the same hash over all events."""
    ways = set()
    for hashing in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
        told = subprocess.run(
            command,
            env=os.environ | {"PYTHONHASHSEED": hashing},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ways.add(told.stdout.splitlines()[-1])
    assert len(ways) == 1 and ways.pop().startswith("hash ")


BUILT = all((HOUSE / ".venv" / stamp).exists() for stamp in (".dev", ".core"))


@pytest.mark.skipif(not BUILT or shutil.which("make") is None, reason="needs what `make` has built here")
def test_the_command_that_is_printed_lives_through_the_same_world_again() -> None:
    """What somebody types who is told that a seed found something."""
    verdict = one(SOON[0])
    told = subprocess.run(verdict.command.split(), cwd=HOUSE, capture_output=True, text=True, check=True)
    assert f"hash {verdict.hash}" in told.stdout.splitlines()
