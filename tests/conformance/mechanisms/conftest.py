"""Where the suite runs: each fixture value runs a body over one kind of host, as a kernel runs."""

from collections.abc import Iterator

import pytest

from . import real, simulated
from .hosts import Run


@pytest.fixture(scope="session")
def machine() -> Iterator[real.Machine]:
    with real.machine() as made:
        yield made


@pytest.fixture(params=["real", "simulated"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "simulated":
        return simulated.alive_in_worlds
    made: real.Machine = request.getfixturevalue("machine")
    return made.run
