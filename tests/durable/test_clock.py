"""Whoever sets the host's clock, or lets a node stand still, keeps no workflow for longer than it was to wait."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from atoll.ipc import clock
from atoll.ipc.durable import Retry, Start, Workflow
from atoll.ipc.durable.rows import step_key, step_of

from .conftest import Here
from .packages.stages.interface import Stages
from .packages.stages.server import Server

DAY = 86400.0


@pytest.fixture
def set_back() -> Iterator[Callable[[], None]]:
    """Sets the clock of this process back, until the test is over."""
    yield lambda: clock.follow(time.monotonic_ns, lambda: time.time() - DAY, time.sleep)
    clock.follow(time.monotonic_ns, time.time, time.sleep)


def test_a_timer_that_goes_on_after_the_clock_was_set_back(
    tmp_path: Path, label: str, set_back: Callable[[], None]
) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.stages.nap.begin.now(Start(id=label), label, 0.5)
        timer = step_key(f"0/{label}", 2)
        for change in here.rows().watch.now(0, timer):
            assert step_of(change.items[0].value or b"").state == "sleeping"
            break
        set_back()
        here.crash()
        assert here.stages.nap.result.now(label) >= 0.5


def test_a_delay_that_goes_on_after_the_clock_was_set_back(
    tmp_path: Path, label: str, set_back: Callable[[], None]
) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.stages.wait.begin.now(Start(id=label, delay=0.2), label)
        set_back()
        here.crash()
        here.stages.release.now(label)
        assert here.stages.wait.result.now(label) == label


class Patient(Server):
    @Stages.stumble.serve
    async def stumble(self, flow: Workflow, label: str, failures: int) -> int:
        await flow.step(self.add, label, 1, 1)
        await self._pass(label)
        return await flow.with_(retry=Retry(attempts=2, pause=60.0)).step(self.try_, label, failures)


def test_a_pause_between_attempts_after_the_clock_was_set_back(
    tmp_path: Path, label: str, set_back: Callable[[], None]
) -> None:
    """Before, there was none: all attempts were spent at once."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.crash(server=Patient)
        (tmp_path / "hold").write_text(label)
        here.stages.stumble.begin.now(Start(id=label), label, 9)
        here.stages.reached.now(label)
        (tmp_path / "hold").unlink()
        set_back()
        here.crash(server=Patient)
        for change in here.rows().watch.now(0, step_key(f"0/{label}", 2)):
            step = step_of(change.items[0].value or b"")
            assert step.state == "trying"
            assert step.until - step.ended == pytest.approx(60)
            break
