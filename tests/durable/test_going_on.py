"""Workflows go on after a swap that was refused, after the store's end, under a version that has other queues."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from atoll.ipc.durable import Start, Workflow, administration
from atoll.ipc.durable.rows import OPEN, name_in, open_key, workflow_of
from atoll.ipc.errors import BadRequest, NotFound, PeerDied, PeerMisbehaved, WorkflowCancelled
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.state import Write
from atoll.ipc.transport import Options
from tests.ipc.test_left_watches import Watched

from .conftest import Here, row_of, until
from .packages.stages.interface import Stages
from .packages.stages.server import Server

SOON = 60.0
"""Seconds after which a call is given up, where none ever ended before."""


class Queueless(Server):
    queues = {}  # noqa: RUF012


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with ExitStack() as stack:
        yield Here(stack, tmp_path, version="A")


def soon(here: Here) -> Stages:
    return here.stages.with_(deadline=SOON)


def test_workflows_run_after_a_swap_that_was_refused(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label, queue="one"), label)
    here.pause()
    here.go_on()
    here.stages.wait.begin.now(Start(id=f"{label} next", queue="one"), f"{label} next")
    here.stages.release.now(label)
    here.stages.release.now(f"{label} next")
    assert soon(here).wait.result.now(label) == label
    assert soon(here).wait.result.now(f"{label} next") == f"{label} next"
    assert soon(here).limited.now(label, 2, 9) == 2


def test_what_ended_during_a_pause_is_told_after_it(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label), label)
    waiting = soon(here).wait.result.start(label)
    here.pause()
    administration.cancel(here.rows(), f"0/{label}")
    here.stages.counts.now()  # by now the feed has told of it
    here.go_on()
    with pytest.raises(WorkflowCancelled):
        waiting.result()


def test_a_pause_ends_the_watch_also_as_what_it_told_is_looked_up(
    here: Here, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each swap that was refused could leave one at the store."""
    watches: list[Watched] = []
    opened = here.store.open

    def open_(method: MethodSpec, payload: bytes, options: Options) -> Any:
        stream = Watched(opened(method, payload, options))
        if OPEN in payload:
            watches.append(stream)
        return stream

    monkeypatch.setattr(here.store, "open", open_)
    here.crash(version="A")
    assert soon(here).limited.now(label, 1, 9) == 1
    done = next(row for row in administration.workflows(here.rows(), ended=True))
    while not watches:
        here.stages.counts.now()
    looks = here.store.hold("get", about=f"{label} again".encode())
    administration.fork(here.rows(), done.name, 1, f"{label} again")
    while not looks:
        here.stages.counts.now()
    here.pause()
    here.stages.counts.now()
    assert all(each.cancelled for each in watches)  # one that was opened before the crash, too
    here.go_on()
    assert soon(here).limited.result.now(f"{label} again") == 1


def test_workflows_outlive_the_feed(here: Here, label: str) -> None:
    here.store.fail("watch", PeerDied("State.watch"), about=OPEN)
    here.crash(version="A")
    here.stages.wait.begin.now(Start(id=label), label)
    waiting = soon(here).wait.result.start(label)
    administration.cancel(here.rows(), f"0/{label}")
    with pytest.raises(WorkflowCancelled):
        waiting.result()


def test_a_workflow_whose_end_could_not_be_written_runs_no_step_again(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label), label)
    waiting = soon(here).wait.result.start(label)
    here.stages.limited.now(label, 1, 9)  # by now the other call has looked, and waits
    here.store.fail("commit", PeerMisbehaved("the store", "a reply"), about=f"{label}, completed".encode())
    here.store.fail("get", PeerDied("State.get"), about=open_key(f"0/{label}"))
    here.stages.release.now(label)
    assert waiting.result() == label
    assert (here.folder / "log").read_text().splitlines() == [f"began {label}"]


def test_a_workflow_whose_start_could_not_be_written_is_started_later(here: Here, label: str) -> None:
    here.store.fail("commit", PeerMisbehaved("the store", "a reply"), about=f"{label}, running".encode())
    here.stages.release.now(label)
    here.stages.wait.begin.now(Start(id=label, queue="one"), label)
    assert soon(here).wait.result.now(label) == label


def test_a_workflow_whose_row_was_deleted_is_over(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label, queue="one"), label)
    here.stages.wait.begin.now(Start(id=f"{label} next", queue="one"), f"{label} next")
    until(here, label, "running")
    waiting = soon(here).wait.result.start(label)
    here.rows().commit.now([Write(open_key(f"0/{label}"))])
    with pytest.raises(NotFound, match=f"there is no workflow '{label}'"):
        waiting.result()
    here.stages.release.now(f"{label} next")
    assert soon(here).wait.result.now(f"{label} next") == f"{label} next"


def test_what_is_queued_where_no_queue_is_any_more_waits_until_a_person_says_so(
    here: Here, label: str
) -> None:
    for id in (label, f"{label} next"):
        here.stages.wait.begin.now(Start(id=id, queue="one"), id)
    here.crash(version="A", server=Queueless)
    soon(here).limited.now(label, 1, 9)
    assert until(here, f"{label} next", "waiting").reason == (
        "this version of the server has no queue 'one': swap back, or let it go on outside of any queue "
        "with `atoll flow resume`"
    )
    administration.resume(here.rows(), f"0/{label} next")
    here.stages.release.now(f"{label} next")
    assert soon(here).wait.result.now(f"{label} next") == f"{label} next"


def test_what_waited_for_its_version_waits_in_its_queue_again(here: Here, label: str) -> None:
    ids = [f"{label} {number}" for number in range(3)]
    for id in ids:
        here.stages.wait.begin.now(Start(id=id, queue="one"), id)
    here.crash(version="B")
    for id in ids:
        until(here, id, "waiting")
    here.crash(version="A")
    for id in ids:
        here.stages.release.now(id)
    for id in ids:
        assert soon(here).wait.result.now(id) == id
    assert most_at_a_time(here, ended=len(ids)) == 1


def most_at_a_time(here: Here, ended: int) -> int:
    """Of the workflows that were open ever, so many of which have ended: how many ran at a time by their rows."""
    running, most, over = set[str](), 0, 0
    for change in here.rows().watch.now(0, OPEN):
        for item in change.items:
            over += item.value is None
            if item.value is not None and workflow_of(item.value).status == "running":
                running.add(name_in(item.key))
            else:
                running.discard(name_in(item.key))
        most = max(most, len(running))
        if over == ended:
            break
    return most


def test_what_is_resumed_waits_for_its_queue(here: Here, label: str) -> None:
    first, second = label, f"{label} next"
    here.stages.wait.begin.now(Start(id=first, queue="one"), first)
    here.stages.wait.cancel.now(first)
    here.stages.wait.begin.now(Start(id=second, queue="one"), second)
    until(here, second, "running")
    assert administration.resume(here.rows(), f"0/{first}").status == "queued"
    here.stages.release.now(second)
    here.stages.release.now(first)
    assert soon(here).wait.result.now(first) == first
    assert row_of(here, second) is None


def test_what_was_resumed_before_its_cancelling_was_answered_goes_on(here: Here, label: str) -> None:
    """Before, the answer that came late took it out of its queue, and nobody put it back."""
    first, second = f"{label} first", label
    for id in (first, second):
        here.stages.wait.begin.now(Start(id=id, queue="one"), id)
    until(here, first, "running")
    held = here.store.hold("commit", about=f"{second}, cancelled".encode())
    cancelling = here.stages.wait.cancel.start(second)
    rows = here.rows()
    while (row := administration.find(rows, second)) is None or row.status != "cancelled":
        pass
    administration.resume(rows, f"0/{second}")
    resumed = rows.get.now(open_key(f"0/{second}"))
    assert resumed is not None
    while here.workflows._open.get(f"0/{second}", (None, 0))[1] < resumed.revision:
        here.stages.counts.now()
    held.pop()()
    cancelling.result()
    for id in (first, second):
        here.stages.release.now(id)
        assert soon(here).wait.result.now(id) == id


def test_what_lost_its_deduplication_key_is_not_resumed(here: Here, label: str) -> None:
    here.stages.wait.begin.now(Start(id=label, deduplicate=label), label)
    here.stages.wait.cancel.now(label)
    here.stages.wait.begin.now(Start(id=f"{label} next", deduplicate=label), f"{label} next")
    with pytest.raises(BadRequest, match=f"no other workflow with the deduplication key '{label}'"):
        administration.resume(here.rows(), f"0/{label}")


class Nursing(Server):
    @Stages.wait.serve
    async def wait(self, flow: Workflow, label: str) -> str:
        async def fails() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("its cleaning up goes wrong")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fails)
        return label


def test_a_workflow_that_fails_over_being_cancelled_ends_no_server(here: Here, label: str) -> None:
    here.crash(server=Nursing)
    here.stages.wait.begin.now(Start(id=label), label)
    until(here, label, "running")
    here.stages.wait.cancel.now(label)
    with pytest.raises(WorkflowCancelled):
        soon(here).wait.result.now(label)
    here.pause()
    here.go_on()
    with pytest.raises(WorkflowCancelled):
        soon(here).wait.result.now(label)
