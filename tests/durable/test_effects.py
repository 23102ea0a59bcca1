"""What a step did is committed with its record, and its function is run once, whatever the store answers meanwhile."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from atoll.ipc import testing
from atoll.ipc.durable import Start
from atoll.ipc.durable.effects import Effects
from atoll.ipc.durable.execution import persistently
from atoll.ipc.durable.rows import step_key
from atoll.ipc.errors import AtollError, Overloaded, PeerDied, PeerMisbehaved
from atoll.ipc.system.state import Item, State, Write
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer

from .conftest import Here
from .failing import Failing


@pytest.fixture
def store() -> Iterator[Failing]:
    with testing.running(StateServer, config=Settings(engine="memory")) as running:
        badge = running.client(State).make_keyspace.now("steps")
        yield Failing(running.client(State, badge=badge))


def test_writes_that_the_store_turned_away_are_told_again(store: Failing) -> None:
    async def step() -> None:
        effects = Effects(store.state)
        effects.write(store.state, [Write(b"effect", b"1")], lambda _: None)
        store.fail("commit", Overloaded("State.commit"), about=b"effect")
        with pytest.raises(Overloaded):
            await effects.whole()
        await persistently(partial(effects.commit, [Write(b"record", b"1")], [], "step"))

    trio.run(step)
    for key in (b"record", b"effect"):
        item = store.state.get.now(key)
        assert item is not None and item.value == b"1"


@pytest.mark.parametrize("value", [b"2", None])
def test_a_row_that_was_appended_is_written_again_by_the_same_step(
    store: Failing, value: bytes | None
) -> None:
    async def step() -> None:
        effects = Effects(store.state)
        effects.write(store.state, [Write(b"effect", b"1")], lambda _: None, new=True)
        effects.write(store.state, [Write(b"effect", value)], lambda _: None)
        assert effects.read(store.state, b"effect").result() == Item(b"effect", value, 0, 0)
        store.fail("append", Overloaded("State.append"))
        await persistently(partial(effects.commit, [Write(b"record", b"1")], [], "step"))

    trio.run(step)
    item = store.state.get.now(b"effect")
    assert (None if item is None else item.value) == value


def test_a_row_that_a_step_appends_is_told_once_though_the_call_before_which_it_is_told_was_given_up(
    store: Failing,
) -> None:
    async def step() -> None:
        effects = Effects(store.state)
        effects.write(store.state, [Write(b"effect", b"1")], lambda _: None, new=True)
        held = store.hold("append")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(effects.part)
            while not held:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
            held[0]()
        await effects.commit([Write(b"record", b"1")], [], "step")

    trio.run(step)
    item = store.state.get.now(b"effect")
    assert item is not None and item.value == b"1"


def test_calls_beside_each_other_share_one_transaction(store: Failing) -> None:
    async def step() -> set[bytes]:
        effects, given = Effects(store.state), set[bytes]()

        async def call() -> None:
            given.add(await effects.whole())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            nursery.start_soon(call)
        effects.forget()
        return given

    assert len(trio.run(step)) == 1


@pytest.mark.parametrize(
    ("lost", "then"),
    [(PeerDied("State.commit"), PeerDied("State.get")), (PeerMisbehaved("the store", "a reply"), None)],
)
def test_a_step_that_was_committed_is_not_run_again(
    tmp_path: Path, label: str, lost: AtollError, then: AtollError | None
) -> None:
    """The answer is lost, and so may be what it asks then to learn what came of it."""
    with ExitStack() as stack:
        here = Here(stack, tmp_path)
        here.store.fail("commit", lost, about=f"{label}, step 1".encode(), taken=True)
        if then is not None:
            here.store.fail("get", then, about=step_key(f"0/{label}", 1))
        here.stages.release.now(label)
        here.stages.wait.begin.now(Start(id=label), label)
        assert here.stages.wait.result.now(label) == label
        assert (tmp_path / "log").read_text().splitlines() == [f"began {label}"]
