"""How often a workflow is taken up before it counts as what ends its server: only if nothing comes of it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from atoll.ipc.durable import Start, administration
from atoll.ipc.durable.rows import RUNS_MOST, encode, open_key, step_key, step_of
from atoll.ipc.system.state import Write

from .conftest import Here, row_of, until

LONG = 1e6


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with ExitStack() as stack:
        yield Here(stack, tmp_path)


def taken_up(here: Here, id: str, runs: int) -> None:
    """As if it had been, and its server had ended each time."""
    here.pause()
    row = row_of(here, id)
    assert row is not None
    here.rows().commit.now([Write(open_key(row.name), encode(msgspec.structs.replace(row, runs=runs)))])
    here.crash()


def until_recorded(here: Here, id: str, number: int, run: int) -> None:
    """Until that run has written a step."""
    key = step_key(f"0/{id}", number)
    for change in here.rows().watch.now(0, key):
        if any(step_of(item.value or b"").run == run for item in change.items):
            return


def test_a_long_timer_goes_on_however_often_its_server_ended(here: Here, label: str) -> None:
    here.stages.nap.begin.now(Start(id=label), label, LONG)
    until_recorded(here, label, 2, 1)
    for run in range(RUNS_MOST // 2, 4 * RUNS_MOST, RUNS_MOST // 2):
        taken_up(here, label, run)
        until_recorded(here, label, 2, run + 1)
    row = row_of(here, label)
    assert row is not None
    assert row.status == "running"


def test_one_that_comes_further_each_time_is_no_culprit(here: Here, label: str) -> None:
    (here.folder / "hold").write_text(f"{label} after 1")
    here.stages.limited.begin.now(Start(id=label), label, 3, 9)
    until_recorded(here, label, 1, 1)
    here.stages.reached.now(f"{label} after 1")  # it does not look at the file any more
    (here.folder / "hold").write_text(f"{label} after 2")
    taken_up(here, label, RUNS_MOST - 1)
    until_recorded(here, label, 2, RUNS_MOST)
    here.stages.reached.now(f"{label} after 2")
    (here.folder / "hold").unlink()
    taken_up(here, label, 2 * RUNS_MOST - 1)
    assert here.stages.limited.result.now(label) == 3


def test_one_of_which_nothing_comes_is_parked_and_can_be_resumed(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label), label)
    taken_up(here, label, RUNS_MOST)
    parked = until(here, label, "parked")
    assert parked.reason == (
        f"it was taken up {RUNS_MOST} times and nothing came of it: it may be what ends its server"
    )
    here.stages.release.now(label)
    administration.resume(here.rows(), parked.name)
    assert here.stages.wait.result.now(label) == label
