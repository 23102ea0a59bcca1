"""Death at each step of a submission and of a roll-back: whole or not at all, and the same call again makes it right."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.errors import PeerDied
from atoll.ipc.faults import Drop, FaultyTransport
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.proxy import bind, transport_of
from atoll.ipc.system.state import State
from atoll.servers.feedback.interface import Batch, Feedback, Invalid, NoSuchBatch, Rater
from atoll.servers.feedback.records import Preference, Record
from atoll.servers.feedback.rows import Row
from atoll.servers.feedback.server import Server
from atoll.servers.feedback.words import Words
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from ..fatal import Countdown, Fatal
from ..unheard import Unheard
from .said import rating, set_of


class Node:
    """Feedback over storage and a store that outlive it."""

    def __init__(self, serve: Any, folder: Path) -> None:
        self._serve = serve
        config = StorageSettings(collect_every=0.0)
        self.storage: Storage = serve(StorageServer, folder=folder, config=config).client(badge=3)
        self.rows: Keyspace[Row] = serve.keyspace("feedback", Row)

    def feedback(self, wrap: Callable[[Any], Any] = lambda transport: transport) -> Any:
        words = self._serve.private("words", Words)
        words.state = bind(State, wrap(transport_of(words.state)))
        return self._serve(
            Server,
            words=words,
            storage=bind(Storage, wrap(transport_of(self.storage))),
            rows=Keyspace(bind(State, wrap(transport_of(self.rows.state))), Row),
        )

    def faulty(self) -> tuple[Any, list[FaultyTransport]]:
        """A server, and its ways to storage and to the store."""
        ways: list[FaultyTransport] = []

        def wrap(transport: Any) -> FaultyTransport:
            ways.append(FaultyTransport(transport))
            return ways[-1]

        return self.feedback(wrap), ways

    def doomed(self, at: int, *, after: bool) -> tuple[Feedback, Countdown]:
        """A server that dies at its step `at` from now on."""
        countdown = Countdown(-1, after=after)
        served = self.feedback(lambda transport: Fatal(transport, countdown))
        countdown.left, countdown.kill = at, served.host.kill
        return served.client(), countdown


@pytest.fixture
def node(serve: Callable[..., Any], tmp_path: Path) -> Node:
    return Node(serve, tmp_path)


def batch(node: Node, name: str) -> Batch:
    """Of two kinds and tasks, with a text of its own in storage."""
    ref = node.storage.put_many.now([f"text of {name}".encode()])[0]
    pair = Preference("r", "expert", 0.4, "chat", chosen=ref, rejected="b", prompt="p")
    held: list[Record] = [*(rating(f"{name} {n}", n / 9, n / 10) for n in range(10)), pair]
    return Batch(name, held)


def steps(node: Node, act: Callable[[Feedback], object], *, after: bool) -> Iterator[int]:
    """Yields the steps at which a server died on the way of `act`, until one lives."""
    for at in count(1):
        feedback, countdown = node.doomed(at, after=after)
        try:
            act(feedback)
        except PeerDied:
            assert countdown.left <= 0
            yield at
        else:
            return


@pytest.mark.parametrize("after", [False, True])
def test_a_submission_is_whole_or_not_at_all(node: Node, after: bool) -> None:
    feedback: Feedback = node.feedback().client()
    wanted = batch(node, "one")
    died = 0

    def submit(doomed: Feedback) -> object:
        return doomed.submit.now(wanted)

    for at in steps(node, submit, after=after):
        died = at
        checked = feedback.check.now()
        assert checked.problems == [], f"step {at}"
        assert checked.records in (0, len(wanted.records)), f"step {at}"
        assert len(set_of(node.feedback().client(), "film")) in (0, 10) if checked.records else True
        receipt = node.feedback().client().submit.now(wanted)
        assert receipt.repeated == bool(checked.records)
        assert feedback.check.now().records == len(wanted.records)
        assert feedback.check.now().stray == []
        feedback.rollback.now(wanted.id, "the next step's turn")
        wanted = batch(node, f"batch-{at}")
    assert died >= 5, "refer, begin, read, commit, finish"


@pytest.mark.parametrize("after", [False, True])
def test_a_roll_back_is_whole_or_not_at_all(node: Node, after: bool) -> None:
    feedback: Feedback = node.feedback().client()
    wanted = batch(node, "one")
    feedback.submit.now(wanted)
    died = 0

    def take_back(doomed: Feedback) -> object:
        return doomed.rollback.now(wanted.id, "taken back")

    for at in steps(node, take_back, after=after):
        died = at
        checked = feedback.check.now()
        assert checked.problems == [], f"step {at}"
        gone = feedback.batch.now(wanted.id).status == "rolled back"
        assert checked.records == (0 if gone else len(wanted.records))
        assert feedback.rollback.now(wanted.id, "taken back again").repeated == gone
        assert feedback.check.now().records == 0
        wanted = batch(node, f"batch-{at}")
        feedback.submit.now(wanted)
    assert died > 3


@pytest.mark.parametrize("taken", [False, True])
def test_the_store_or_storage_may_die_at_any_step(node: Node, taken: bool) -> None:
    """A client does not notice: what was lost on the way is asked again, and nothing is stored twice."""
    feedback: Feedback = node.feedback().client()
    for at in range(1, 20):
        wanted = batch(node, f"batch-{at}")
        served, faulty = node.faulty()
        for transport in faulty:
            transport._faults[transport.steps + at] = Drop(at=transport.steps + at, taken=taken)
        receipt = served.client().submit.now(wanted)
        assert feedback.batch.now(wanted.id).revision == receipt.revision
        assert len(list(served.client().records.now())) == len(wanted.records)
        served.client().rollback.now(wanted.id, "test")
        assert list(served.client().records.now()) == []
        assert feedback.check.now().problems == []


def test_a_text_that_is_lost_before_its_batch_is_stored_stores_nothing(node: Node) -> None:
    wanted = batch(node, "one")
    doomed, _ = node.doomed(1, after=True)
    with pytest.raises(PeerDied):
        doomed.submit.now(wanted)
    feedback: Feedback = node.feedback().client()
    with pytest.raises(NoSuchBatch):
        feedback.batch.now("one")
    assert len(feedback.check.now().stray) == 1
    feedback.submit.now(wanted)
    assert feedback.check.now().stray == []


def given_up(node: Node, method: str, act: Callable[[Feedback], Any]) -> Any:
    """A server, of which a client asked something and gave up when the store had done `method` for it."""
    ways: list[Unheard] = []

    def wrap(transport: Any) -> Unheard:
        ways.append(Unheard(transport))
        return ways[-1]

    served = node.feedback(wrap)
    store = ways[-1]
    store.method = method
    asked = act(served.client())
    assert store.done.wait(60)
    asked.cancel()
    served.settle()
    return served


def test_a_batch_whose_client_gave_up_during_its_commit_is_found(node: Node) -> None:
    wanted = batch(node, "one")
    served = given_up(node, "State.finish", lambda feedback: feedback.submit.start(wanted))
    feedback: Feedback = served.client()
    assert len(list(feedback.records.now())) == feedback.statistics.now().records == len(wanted.records)
    assert [each.task for each in feedback.statistics.now().tasks] == ["chat", "film"]
    assert len(set_of(feedback, "film")) == 10
    assert feedback.agreement.now("chat").task == "chat"
    assert feedback.submit.now(wanted).repeated
    assert feedback.check.now().problems == []


def test_a_rater_whose_appointment_was_given_up_during_its_commit_has_a_badge(node: Node) -> None:
    served = given_up(node, "State.commit", lambda feedback: feedback.appoint.start(Rater("ann", badge=21)))
    feedback: Feedback = served.client(badge=5)
    assert feedback.raters.now() == [Rater("ann", badge=21)]
    with pytest.raises(Invalid, match="who has a capability of their own"):
        feedback.submit.now(Batch("b", [rating("x", 1.0, rater="ann")]))
    served.client(badge=21).submit.now(Batch("own", [rating("x", 1.0, rater="ann")]))
