"""A moment that is held is read for as long as it is, whatever the image gives up of the past."""

from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import BadRequest, NotAllowed
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import Ahead, Compacted, PinExists, State
from atoll.servers.feedback import datasets
from atoll.servers.feedback.datasets import Datasets
from atoll.servers.feedback.interface import Batch, Feedback
from atoll.servers.feedback.server import Server, Settings
from tests.microkernel.nodes import booted

from .conftest import Node
from .said import ratings
from .test_beside_appointments import Holding
from .test_job import IMAGE

KEYSPACES = ("feedback", "words")
FORGETS = (
    IMAGE.replace("[keyspace.feedback]\n", '[keyspace.feedback]\nretention = "0s"\n')
    .replace("private = true\n", 'private = true\nretention = "0s"\n')
    .replace("needs = {}", "needs = { config = { config = { grace = 0.0, compact_every = 0.02 } } }")
)
HOLDS = FORGETS
for name in KEYSPACES:
    before = f'{{ keyspace = "{name}", rights = ["read", "write", "history"] }}'
    assert before in HOLDS
    HOLDS = HOLDS.replace(before, before.replace('"history"]', '"history", "pin"]'))


def give_up(me: Attached, feedback: Feedback, revision: int) -> None:
    """Submit and take back until the past is gone beyond a revision."""
    states = [me.keyspace(name, ["read"]) for name in KEYSPACES]
    number = 0
    while min(state.horizon.now().revision for state in states) <= revision:
        number += 1
        feedback.submit.now(Batch(f"passing.{revision}.{number}", ratings(3)))
        feedback.rollback.now(f"passing.{revision}.{number}", "a test")


def test_a_set_that_is_held_is_read_when_the_past_was_given_up(tmp_path: Path) -> None:
    with booted(tmp_path, text=HOLDS) as node, node.attach() as me:
        feedback, data = me.open("feedback", Feedback), datasets.of(me)
        feedback.submit.now(Batch("one", ratings(20)))
        passed = data.moment()
        feedback.submit.now(Batch("two", ratings(20, first=20)))
        held = data.keep("model-1", why="what model-1 was trained on")
        rows = list(data.unpaired("film", held))
        assert len(rows) == 40
        feedback.rollback.now("one", "a test")
        give_up(me, feedback, held)
        assert list(data.unpaired("film", held)) == rows
        with pytest.raises(Compacted):
            list(data.unpaired("film", passed))
        assert [(each.name, each.revision) for each in data.kept()] == [("model-1", held)]
        data.let_go("model-1")
        assert data.kept() == []
        with pytest.raises(Compacted):
            list(data.unpaired("film", held))


def test_without_the_right_of_the_store_nothing_is_held(tmp_path: Path) -> None:
    with booted(tmp_path, text=FORGETS) as node, node.attach() as me, pytest.raises(NotAllowed):
        datasets.of(me).keep("model-1")


@pytest.fixture
def data(node: Node) -> Datasets:
    node.feedback.submit.now(Batch("one", ratings(3)))
    return Datasets(node.feedback, node.storage)


def test_a_name_holds_one_moment(data: Datasets, node: Node) -> None:
    first = data.moment()
    assert data.keep("model-1", first, "a reason") == first
    later = node.feedback.submit.now(Batch("two", ratings(3))).revision
    assert data.keep("model-1") == first
    with pytest.raises(PinExists) as exists:
        data.keep("model-1", later)
    assert exists.value.revision == first
    assert data.keep("model-2", later) == later
    assert [(each.name, each.revision, each.why) for each in data.kept()] == [
        ("model-1", first, "a reason"),
        ("model-2", later, ""),
    ]
    for _ in range(2):
        data.let_go("model-1")
    assert data.keep("model-1", later) == later


def test_a_moment_that_is_none_is_refused(data: Datasets) -> None:
    with pytest.raises(BadRequest):
        data.keep("model-1", 0)
    with pytest.raises(Ahead):
        data.keep("model-1", data.moment() + 1000)
    assert data.kept() == []


def test_what_a_crash_left_of_holding_a_moment_is_made_whole_or_dropped(data: Datasets, serve: Any) -> None:
    """The rows' pin is made first and dropped last."""
    rows = serve.keyspace("atoll.servers.feedback.server.rows", object).state
    revision = rows.pin.now("model-1").revision
    assert data.kept() == []
    assert data.keep("model-1") == revision
    assert [each.revision for each in data.kept()] == [revision]
    rows.pin.now("model-2")
    data.let_go("model-2")
    assert [pin.name for pin in rows.pins.now()] == ["model-1"]


def test_a_moment_that_is_held_while_its_name_is_let_go_is_held_in_both_keyspaces_or_in_none(
    node: Node, serve: Any
) -> None:
    rows = serve.keyspace("atoll.servers.feedback.server.rows", object)
    way = Holding(transport_of(rows.state))
    rows.state = bind(State, way)
    node.served.stop()
    feedback: Feedback = serve(Server, rows=rows, storage=node.storage, config=Settings()).client()
    feedback.submit.now(Batch("one", ratings(3)))
    feedback.keep.now("model-1")
    way.hold("State.unpin")
    gone = feedback.let_go.start("model-1")
    way.held.wait()
    held = feedback.keep.start("model-1")
    for _ in range(100):  # as far as it gets: to the end, or to where it waits for the other
        feedback.head.now()
    way.release()
    gone.result()
    assert held.result().name == "model-1"
    pinned = [
        pin.name for pin in serve.keyspace("atoll.servers.feedback.server.rows", object).state.pins.now()
    ]
    assert pinned == [each.name for each in feedback.kept.now()] == ["model-1"]
