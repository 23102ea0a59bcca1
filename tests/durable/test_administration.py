"""What a person does to workflows from outside: by writes of their rows, which the server learns of."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.durable import Start, administration
from atoll.ipc.errors import BadRequest, NotFound, WorkflowCancelled
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import Page, State
from atoll.ipc.transport import Layer, Options

from .conftest import Here, Running, effects, until
from .nodes import hold
from .packages.stages.interface import TooFar
from .packages.stages.server import Server


class Tolerant(Server):
    """Another version, which goes on with what others began."""

    def may_go_on(self, method: str, version: str) -> bool:
        return (method, version) == ("Stages.limited", "A")


def held(running: Running, label: str, point: str) -> str:
    """A workflow of four steps that has come to a point and stays there; its name."""
    hold(running.folder, f"{label} {point}")
    running.stages.limited.begin.now(Start(id=label), label, 4, 9)
    running.stages.reached.now(f"{label} {point}")
    hold(running.folder, "")
    return f"0/{label}"


def test_cancelled_from_outside_it_runs_no_further_step(running: Running, label: str) -> None:
    name = held(running, label, "after 2")
    result = running.stages.limited.result.start(label)
    assert administration.cancel(running.rows(), name).status == "cancelled"
    with pytest.raises(WorkflowCancelled):
        result.result()
    assert administration.cancel(running.rows(), name).status == "cancelled"
    running.crash()
    assert effects(running, label) == {"1": 1, "2": 1}


def test_resumed_it_goes_on_where_it_was(running: Running, label: str) -> None:
    name = held(running, label, "after 2")
    administration.cancel(running.rows(), name)
    with pytest.raises(WorkflowCancelled):
        running.stages.limited.result.now(label)
    administration.resume(running.rows(), name)
    assert running.stages.limited.result.now(label) == 4
    assert effects(running, label) == {"1": 1, "2": 1, "3": 1, "4": 1}
    with pytest.raises(BadRequest, match="has completed; `atoll flow fork` repeats it"):
        administration.resume(running.rows(), name)


def test_a_fork_has_the_steps_before_and_does_the_others_anew(running: Running, label: str) -> None:
    running.stages.limited.begin.now(Start(id=label), label, 3, 9)
    assert running.stages.limited.result.now(label) == 3
    state, fork = running.rows(), f"{label} again"
    made = administration.fork(state, f"0/{label}", 3, fork)
    assert made.forked == f"{label}, step 3"
    assert running.stages.limited.result.now(fork) == 3
    assert effects(running, label) == {"1": 1, "2": 1, "3": 2}
    first, second = (administration.steps(state, f"0/{id}") for id in (label, fork))
    assert [number for number, _ in first] == [number for number, _ in second] == [1, 2, 3]
    assert first[:2] == second[:2]
    for step in (0, 5):
        with pytest.raises(BadRequest, match="a step of 1 to 4"):
            administration.fork(state, f"0/{label}", step, "other")
    with pytest.raises(BadRequest, match="an id that is free"):
        administration.fork(state, f"0/{label}", 1, fork)
    with pytest.raises(NotFound):
        administration.fork(state, "0/nothing", 1, "other")


def test_a_fork_repeats_a_step_that_failed(running: Running, label: str) -> None:
    running.stages.limited.begin.now(Start(id=label), label, 3, 1)
    with pytest.raises(TooFar):
        running.stages.limited.result.now(label)
    state = running.rows()
    row = administration.find(state, label)
    assert row is not None and row.status == "failed"
    administration.fork(state, row.name, 2, f"{label} again")
    with pytest.raises(TooFar):
        running.stages.limited.result.now(f"{label} again")
    assert effects(running, label) == {"1": 1}


def test_a_parked_workflow_is_resumed_once_its_code_asks_for_the_same_again(
    running: Running, label: str
) -> None:
    hold(running.folder, f"{label} after 2")
    running.stages.change.begin.now(Start(id=label), label)
    running.stages.reached.now(f"{label} after 2")
    hold(running.folder, "")
    (running.folder / "again").touch()
    running.crash()
    until(running, label, "parked")
    (running.folder / "again").unlink()
    running.crash()
    administration.resume(running.rows(), f"0/{label}")
    assert running.stages.change.result.now(label) == label


def test_what_another_version_began_waits(tmp_path: Path, label: str) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path, version="A")
        name = held(here, label, "after 2")
        here.crash(version="B")
        row = until(here, label, "waiting")
        assert row.reason == (
            "version A of the server has begun it, and version B does not say that it goes on with that: "
            "swap back, or let it go on with `atoll flow resume`"
        )
        here.crash(version="C", server=Tolerant)
        assert here.stages.limited.result.now(label) == 4
        assert effects(here, label) == {"1": 1, "2": 1, "3": 1, "4": 1}
        found = administration.find(here.rows(), name)
        assert found is not None and found.version == "A"


def test_what_waits_for_its_version_goes_on_with_it_or_when_a_person_says_so(
    tmp_path: Path, label: str
) -> None:
    with ExitStack() as stack:
        here = Here(stack, tmp_path, version="A")
        held(here, label, "after 2")
        held(here, f"{label}b", "after 2")
        here.crash(version="B")
        until(here, label, "waiting")
        administration.resume(here.rows(), f"0/{label}")
        assert here.stages.limited.result.now(label) == 4
        here.crash(version="A")
        assert here.stages.limited.result.now(f"{label}b") == 4


class SentAgain(Layer):
    """A capability on a store that dies over each commit once it is durable: the next process is sent it again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def call_now(self, method: MethodSpec, payload: bytes, options: Options) -> Any:
        if method is State.commit.spec:
            bytes(self.inner.call_now(method, payload, options))
        return self.inner.call_now(method, payload, options)


def test_what_a_person_did_is_no_error_where_the_store_died_over_it(running: Running, label: str) -> None:
    """Done, it was asked for again, and refused since it was done: the id was taken, or the workflow ran already."""
    name = held(running, label, "after 2")
    state = bind(State, SentAgain(transport_of(running.rows())))
    assert administration.cancel(state, name).status == "cancelled"
    assert administration.fork(state, name, 1, f"{label} again").id == f"{label} again"
    assert administration.resume(state, name).status == "running"
    assert running.stages.limited.result.now(label) == 4


class EndsMeanwhile:
    """A state of which a range is read, and then a workflow in it is cancelled."""

    def __init__(self, state: State, name: str) -> None:
        self._state = state
        self._name = name
        self.revision_at = state.revision_at

    @property
    def range(self) -> "EndsMeanwhile":
        return self

    def now(self, *given: Any) -> Page:
        page: Page = self._state.range.now(*given)
        administration.cancel(self._state, self._name)
        return page


def test_a_workflow_that_ends_while_all_are_listed_is_listed_once(running: Running, label: str) -> None:
    name = held(running, label, "after 2")
    state: Any = EndsMeanwhile(running.rows(), name)
    found = [row.status for row in administration.workflows(state, ended=True) if row.name == name]
    assert found == ["cancelled"]


def test_all_are_listed_as_of_one_state_though_the_time_is_not_over(running: Running, label: str) -> None:
    name = held(running, label, "after 2")
    state: Any = EndsMeanwhile(running.rows(), name)
    listed = administration.workflows(state, ended=True, as_of=time.time() + 3600)
    assert [row.status for row in listed if row.name == name] == ["running"]
