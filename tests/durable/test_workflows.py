"""What a workflow promises, in this process and in a real node alike."""

import pytest

from atoll.ipc.durable import Retry, Start
from atoll.ipc.durable.administration import find, fork
from atoll.ipc.errors import BadRequest, NotFound, TooLarge, WorkflowCancelled
from tests.microkernel.nodes import RealNode

from .conftest import InNode, Running, effects, row_of, until
from .nodes import hold
from .packages.stages.interface import TooFar


def test_a_call_gives_the_result(running: Running, label: str) -> None:
    assert running.stages.limited.now(label, 3, 9) == 3
    assert effects(running, label) == {"1": 1, "2": 1, "3": 1}


def test_the_result_can_be_had_later_by_the_id(running: Running, label: str) -> None:
    assert running.stages.limited.begin.now(Start(id=label), label, 2, 9) == label
    assert running.stages.limited.result.now(label) == 2
    running.crash()
    assert running.stages.limited.result.now(label) == 2
    with pytest.raises(NotFound, match="there is no workflow 'nothing'"):
        running.stages.limited.result.now("nothing")
    with pytest.raises(BadRequest, match=r"expected a workflow of Stages.wait, got Stages.limited"):
        running.stages.wait.result.now(label)


def test_what_is_begun_again_under_its_id_runs_once(running: Running, label: str) -> None:
    for _ in range(2):
        running.stages.limited.begin.now(Start(id=label), label, 2, 9)
        assert running.stages.limited.result.now(label) == 2
    assert effects(running, label) == {"1": 1, "2": 1}
    with pytest.raises(BadRequest, match="got other arguments"):
        running.stages.limited.begin.now(Start(id=label), label, 3, 9)
    with pytest.raises(BadRequest, match="got another method"):
        running.stages.wait.begin.now(Start(id=label), label)


@pytest.mark.parametrize("id", ["a\nb", "x" * 129, "ö" * 65])
def test_an_id_is_short_and_printable(running: Running, id: str) -> None:
    with pytest.raises(BadRequest, match="1 to 128 bytes of printable text"):
        running.stages.wait.begin.now(Start(id=id), "x")


def test_a_declared_failure_is_an_outcome(running: Running, label: str) -> None:
    running.stages.limited.begin.now(Start(id=label), label, 4, 2)
    for _ in range(2):
        with pytest.raises(TooFar) as told:
            running.stages.limited.result.now(label)
        assert told.value.step == 3
        running.crash()
    assert effects(running, label) == {"1": 1, "2": 1}


def test_a_step_with_a_bug_undoes_its_effects_and_is_told_again_as_it_was(
    running: Running, label: str
) -> None:
    hold(running.folder, f"{label} after 2")
    running.stages.fall.begin.now(Start(id=label), label)
    running.stages.reached.now(f"{label} after 2")
    hold(running.folder, "")
    running.crash()
    assert "ZeroDivisionError" in running.stages.fall.result.now(label)
    assert effects(running, label) == {"1": 1}


def test_an_error_that_no_row_holds_is_an_outcome_too(running: Running, label: str) -> None:
    """The workflow went on with it, and nothing was recorded: run again, the step was made anew."""
    hold(running.folder, f"{label} after 2")
    running.stages.loud.begin.now(Start(id=label), label, 2 << 20)
    running.stages.reached.now(f"{label} after 2")
    hold(running.folder, "")
    running.crash()
    assert running.stages.loud.result.now(label) == "TooLarge"
    lines = (running.folder / "log").read_text().splitlines()
    assert lines.count(f"shouted {label}") == 1


def test_attempts_are_counted_over_a_crash(running: Running, label: str) -> None:
    hold(running.folder, f"{label} in 3")
    running.stages.stumble.begin.now(Start(id=label), label, 3)
    running.stages.reached.now(f"{label} in 3")
    hold(running.folder, "")
    running.crash()
    assert running.stages.stumble.result.now(label) == 4
    assert effects(running, label) == {"4": 1}


def test_a_step_that_fails_too_often_fails_its_workflow(running: Running, label: str) -> None:
    with pytest.raises(Exception, match=f"{label} has as many calls in hand as it takes"):
        running.stages.stumble.now(label, 9)


def test_a_timer_goes_on_over_a_crash(running: Running, label: str) -> None:
    hold(running.folder, f"{label} after 1")
    running.stages.nap.begin.now(Start(id=label), label, 0.05)
    running.stages.reached.now(f"{label} after 1")
    hold(running.folder, "")
    running.crash()
    assert running.stages.nap.result.now(label) >= 0.05
    assert effects(running, label) == {"1": 1}


def test_time_and_chance_between_steps_are_the_same_again(running: Running, label: str) -> None:
    hold(running.folder, f"{label} after 1")
    running.stages.chance.begin.now(Start(id=label), label)
    running.stages.reached.now(f"{label} after 1")
    hold(running.folder, "")
    running.crash()
    given = running.stages.chance.result.now(label)
    told = [line for line in (running.folder / "log").read_text().splitlines() if line.startswith(label)]
    assert told == [f"{label} {given}"] * 2
    assert len(set(given)) == 4


def test_a_workflow_that_asks_for_another_step_is_parked(running: Running, label: str) -> None:
    hold(running.folder, f"{label} after 2")
    running.stages.change.begin.now(Start(id=label), label)
    running.stages.reached.now(f"{label} after 2")
    (running.folder / "again").touch()
    running.crash()
    row = until(running, label, "parked")
    (running.folder / "again").unlink()
    assert row.reason == (
        "step 2: expected 'add', as it was recorded, found 'another': "
        "the workflow does not ask for the same steps as before"
    )
    assert effects(running, label) == {"1": 1, "2": 1}


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("write", "reading or writing rows between steps"),
        ("read", "reading or writing rows between steps"),
        ("unnamed", "the step '<lambda>': expected a result type"),
    ],
)
def test_what_belongs_into_a_step_is_refused_outside(
    running: Running, label: str, what: str, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        running.stages.stray.now(label, what)


def test_steps_run_one_at_a_time(running: Running, label: str) -> None:
    with pytest.raises(Exception, match="ExceptionGroup"):
        running.stages.stray.now(label, "beside")


def test_a_workflow_is_cancelled_while_a_step_runs(running: Running, label: str) -> None:
    running.stages.wait.begin.now(Start(id=label), label)
    waiting = running.stages.wait.result.start(label)
    running.stages.wait.cancel.now(label)
    with pytest.raises(WorkflowCancelled, match=label):
        waiting.result()
    running.stages.release.now(label)
    running.crash()
    with pytest.raises(WorkflowCancelled):
        running.stages.wait.result.now(label)
    running.stages.wait.cancel.now(label)  # once more is no error
    assert row_of(running, label) is None


@pytest.mark.parametrize("in_step", [True, False])
def test_a_result_that_is_too_large_is_a_failure(running: Running, label: str, in_step: bool) -> None:
    running.stages.heap.begin.now(Start(id=label), 17 << 20, in_step=in_step)
    for _ in range(2):
        with pytest.raises(TooLarge):
            running.stages.heap.result.now(label)
        running.crash()


def test_a_workflow_whose_arguments_just_fitted_has_an_end(real_node: RealNode, label: str) -> None:
    """They fit into its beginning, and beside a word on how it ended they do not. Before, that ended its server, at each
    start again."""
    with real_node.attach() as attached:
        running = InNode(attached, real_node)
        fits, too_large = 0, 4 << 20

        def id_of(size: int) -> str:
            return f"{label} {size:08}"

        while too_large - fits > 1:
            size = (fits + too_large) // 2
            try:
                running.stages.limited.begin.now(Start(id=id_of(size)), "x" * size, 0, 0)
                fits = size
            except TooLarge:
                too_large = size
        for _ in range(2):
            with pytest.raises(TooLarge):
                running.stages.limited.result.now(id_of(fits))
        row = find(running.rows(), id_of(fits))
        assert row is not None and (row.status, row.arguments) == ("failed", b"")
        with pytest.raises(BadRequest, match="one whose arguments are kept"):
            fork(running.rows(), row.name, 1, f"{label} again")
        # The same, as far as is known.
        running.stages.limited.begin.now(Start(id=id_of(fits)), "x" * fits, 0, 0)


def test_a_timer_has_an_end_that_can_be_told(running: Running, label: str) -> None:
    with pytest.raises(BadRequest, match=r"flow.sleep: expected .* \(ten years\) at most"):
        running.stages.nap.now(label, 1e11)


def test_pauses_grow_up_to_the_longest() -> None:
    retry = Retry(pause=0.1, factor=2.0, longest=60.0)
    assert [retry.after(attempt) for attempt in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert {retry.after(attempt) for attempt in (100, 2_000, 100_000)} == {60.0}
    assert Retry(pause=0.0).after(100_000) == 0.0


def test_a_caller_that_gives_up_ends_nothing(running: Running, label: str) -> None:
    running.stages.wait.begin.now(Start(id=label), label)
    with pytest.raises(Exception, match="did not end within"):
        running.stages.with_(deadline=0.05).wait.result.now(label)
    running.stages.release.now(label)
    assert running.stages.wait.result.now(label) == label
