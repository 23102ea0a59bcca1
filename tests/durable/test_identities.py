"""By what workflows and their calls are told from others: ids that nobody guesses, keys that stand for arguments as well,
and what becomes of both when a workflow is kept no longer."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from atoll.ipc import Deferred, Interface, Keyspace, Serves, call, testing
from atoll.ipc.bound import transport_of
from atoll.ipc.durable import Retry, Start, Workflow, durable, retention, this_step
from atoll.ipc.durable.administration import steps, workflows
from atoll.ipc.durable.rows import DONE, WorkflowRow, workflow_of
from atoll.ipc.errors import BadRequest, NotFound, Overloaded
from atoll.ipc.local_view import after_prefix
from atoll.ipc.system.state import State
from atoll.ipc.transport import Options
from atoll.servers.state.gather import Gather
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer
from tests.microkernel.nodes import RealNode

from .conftest import Here, InNode, Running, until
from .packages.stages.interface import Stages
from .packages.stages.server import Server


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    with ExitStack() as stack:
        yield Here(stack, tmp_path)


# ids --------------------------------------------------------------------------------------------------------------


def test_an_id_that_was_not_given_is_not_to_be_guessed(running: Running) -> None:
    ids = [running.stages.run.begin.now(Start(), 1) for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("call-[0-9a-f]{32}", id) for id in ids)
    assert [running.stages.run.result.now(id) for id in ids] == [[1]] * 3


def test_a_call_that_is_delivered_again_finds_its_workflow(here: Here) -> None:
    transport = transport_of(here.stages)
    spec = Stages.run.begin.spec
    payload = msgspec.msgpack.encode(spec.arguments(Start(deduplicate="it"), 1))  # type: ignore[call-arg]
    again = Options(request=77)
    first = transport.call_now(spec, payload, again)
    assert transport.call_now(spec, payload, again) == first
    here.stages.run.result.now(msgspec.msgpack.decode(first))
    assert transport.call_now(spec, payload, again) == first
    assert transport.call_now(spec, payload, Options(request=78)) != first
    assert len(list(workflows(here.rows(), ended=True))) == 2


class _Held(Gather):
    """Has a group wait for more, as where the disk is slow and many came the last time."""

    held = True

    def wait(self, size: int, age: float) -> float:
        return 0.001 if self.held else 0.0


def test_an_id_that_is_begun_twice_at_once_is_one_workflow(here: Here, label: str) -> None:
    """Before, the second was told that something else hindered it: what it met was not to be read yet."""
    store = here._store._host.endpoint.server
    assert isinstance(store, StateServer)
    store._gather = gather = _Held()
    both = [here.stages.run.begin.start(Start(id=label), 1) for _ in range(2)]
    while len(store._group) < 2 and not any(each.done() for each in both):
        time.sleep(0)
    gather.held = False
    assert [each.result() for each in both] == [label, label]
    assert here.stages.run.result.now(label) == [1]


def test_a_call_whose_server_dies_has_one_workflow(real_node: RealNode, label: str) -> None:
    with real_node.attach() as attached:
        running = InNode(attached, real_node)
        waiting = running.stages.wait.start(label)
        while not (begun := labelled(running, label)):
            pass
        until(running, begun[0].id, "running")
        running.crash()
        running.stages.release.now(label)
        assert waiting.result() == label
        assert [(row.id, row.status) for row in labelled(running, label)] == [(begun[0].id, "completed")]


def labelled(running: Running, label: str) -> list[WorkflowRow]:
    return [row for row in workflows(running.rows(), ended=True) if label.encode() in row.arguments]


# keys -------------------------------------------------------------------------------------------------------------


class Counter(Interface):
    @call("write", once=True)
    def add(self, key: str, by: int) -> int: ...

    @call("write", once=True)
    def set(self, key: str, to: int) -> int: ...

    @call("read", idempotent=True)
    def counts(self) -> dict[str, int]: ...


class Counting(Serves[Counter]):
    rows: Keyspace[int]

    @Counter.add.serve
    def add(self, key: str, by: int) -> Deferred[int]:
        return self.rows.update(key, lambda before: (before or 0) + by)

    @Counter.set.serve
    def set(self, key: str, to: int) -> Deferred[int]:
        return self.rows.put(key, to)

    @Counter.counts.serve
    async def counts(self) -> dict[str, int]:
        return {row.key: row.value or 0 async for row in self.rows.range()}


class Caller(Interface):
    @durable("call")
    def twice(self, method: str, first: int, then: int) -> int:
        """A step that calls, fails, and calls again."""


class Calling(Serves[Caller]):
    rows: Keyspace[int]
    counter: Counter

    @Caller.twice.serve
    async def twice(self, flow: Workflow, method: str, first: int, then: int) -> int:
        return await flow.with_(retry=Retry(attempts=2, pause=0.0)).step(self.ask, method, first, then)

    async def ask(self, method: str, first: int, then: int) -> int:
        attempt = this_step().attempt
        value = first if attempt == 1 else then
        reply = await (self.counter.add if method == "add" else self.counter.set)("k", value)
        if attempt == 1:
            raise Overloaded("the step")
        return reply


@pytest.fixture
def caller() -> Iterator[tuple[Caller, Counter]]:
    with ExitStack() as stack:
        store = stack.enter_context(testing.running(StateServer, config=Settings(engine="memory")))

        def keyspace(name: str) -> Keyspace[int]:
            return Keyspace(
                store.client(State, badge=store.client(State).make_keyspace.now(name)), int, boot=3
            )

        counting = stack.enter_context(testing.running(Counting, needs={"rows": keyspace("counter")}))
        counter = counting.client(Counter)
        calling = stack.enter_context(
            testing.running(Calling, needs={"rows": keyspace("caller"), "counter": counter})
        )
        yield calling.client(Caller), counter


@pytest.mark.parametrize("method", ["add", "set"])
def test_a_step_that_calls_the_same_again_has_it_once(caller: tuple[Caller, Counter], method: str) -> None:
    calling, counter = caller
    assert calling.twice.now(method, 5, 5)
    assert counter.counts.now() == {"k": 5}


@pytest.mark.parametrize("method", ["add", "set"])
def test_a_step_that_calls_by_other_arguments_is_refused(caller: tuple[Caller, Counter], method: str) -> None:
    """Before, it got the first call's reply, as if that had been what it asked for."""
    calling, counter = caller
    with pytest.raises(
        BadRequest,
        match=f"Counter.{method}, called again by the same step of a workflow: expected the arguments of the",
    ):
        calling.twice.now(method, 5, 6)
    assert counter.counts.now() == {"k": 5}


# those that have ended --------------------------------------------------------------------------------------------


async def test_what_ended_long_ago_goes_with_its_steps(here: Here, label: str) -> None:
    rows = here.rows()
    for number in range(3):
        await here.stages.run.begin(Start(id=f"{label} {number}"), 2)
    for number in range(3):
        await here.stages.run.result(f"{label} {number}")
    await here.stages.wait.begin(Start(id="open"), label)
    first = min(row.ended for row in workflows(rows, ended=True) if row.ended)
    assert await retention.forget_before(rows, first - 1) == 0
    assert await retention.forget_before(rows, time.time() + 1) == 3
    assert [row.id for row in workflows(rows, ended=True)] == ["open"]
    assert all(steps(rows, f"0/{label} {number}") == [] for number in range(3))
    with pytest.raises(NotFound):
        await here.stages.run.result(f"{label} 0")
    await here.stages.release(label)
    assert await here.stages.wait.result("open") == label
    # The id is free again, and nothing is left of what was done under it.
    await here.stages.run.begin(Start(id=f"{label} 0"), 2)
    assert await here.stages.run.result(f"{label} 0") == [1, 4]


async def test_what_was_written_meanwhile_stays(here: Here, label: str) -> None:
    rows = here.rows()
    await here.stages.run.begin(Start(id=label), 2)
    await here.stages.run.result(label)
    (item,) = (await rows.range(DONE, after_prefix(DONE))).items
    assert not await retention.remove(rows, workflow_of(item.value or b""), item.revision - 1)
    assert await here.stages.run.result(label) == [1, 4]
    assert len(steps(rows, f"0/{label}")) == 2


def test_a_server_says_how_long_they_are_kept(here: Here, label: str) -> None:
    class Forgetful(Server):
        workflows_kept = 0.001

    here.crash(server=Forgetful)
    head = here.rows().head.now()
    here.stages.run.begin.now(Start(id=label), 1)
    removed = (
        item for change in here.rows().watch.now(head, DONE) for item in change.items if item.value is None
    )
    assert next(removed).key == DONE + f"0/{label}".encode()
    assert steps(here.rows(), f"0/{label}") == []
