"""Whoever sets the host's clock, or lets a node stand still, keeps no workflow for longer than it was to wait."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from atoll.ipc import clock
from atoll.ipc.durable import Start
from atoll.ipc.durable.rows import step_key, step_of

from .conftest import Here

DAY = 86400.0


def set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "wall", lambda: time.time() - DAY)


def test_a_timer_that_goes_on_after_the_clock_was_set_back(
    tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.stages.nap.begin.now(Start(id=label), label, 0.5)
        timer = step_key(f"0/{label}", 2)
        for change in here.rows().watch.now(0, timer):
            assert step_of(change.items[0].value or b"").state == "sleeping"
            break
        set_back(monkeypatch)
        here.crash()
        assert here.stages.nap.result.now(label) >= 0.5


def test_a_delay_that_goes_on_after_the_clock_was_set_back(
    tmp_path: Path, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.stages.wait.begin.now(Start(id=label, delay=0.2), label)
        set_back(monkeypatch)
        here.crash()
        here.stages.release.now(label)
        assert here.stages.wait.result.now(label) == label
