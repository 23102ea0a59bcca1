"""Submissions beside appointments and beside each other; and what a submission asks the store."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from atoll.ipc.errors import AtollError, Conflict
from atoll.ipc.faults import FaultyTransport
from atoll.ipc.future import RawFuture, RawReply
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.method import MethodSpec
from atoll.ipc.proxy import Options, bind, transport_of
from atoll.ipc.system.state import State, Write
from atoll.servers.feedback.interface import Batch, BatchExists, Feedback, Invalid, NoSuchBatch, Rater
from atoll.servers.feedback.rows import Row
from atoll.servers.feedback.server import Server
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from .conftest import SUBMITTER
from .said import rating


class Holding(FaultyTransport):
    """A way to the store that counts calls, and holds back the next one of a method until `release`."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls = Counter[str]()
        self.hold("")

    def hold(self, method: str) -> None:
        self.method = method
        self.held = threading.Event()

    def start(self, method: MethodSpec, payload: bytes, options: Options) -> RawReply:
        self.calls[method.label] += 1
        if method.label != self.method:
            return super().start(method, payload, options)
        self.method, future = "", RawFuture()

        def go() -> None:
            reply = self.inner.start(method, payload, options)
            reply.add_done_callback(lambda: answer(reply, future))

        self._held.append(go)
        self.held.set()
        return future


def answer(reply: RawReply, future: RawFuture) -> None:
    try:
        future.complete(reply.result())
    except AtollError as error:
        future.fail(error)


class Node(NamedTuple):
    feedback: Feedback
    storage: Storage
    served: Any
    store: Holding
    texts: Holding
    """The server's way to storage."""
    others: Keyspace[int]
    """Of somebody who takes the server into a transaction."""


@pytest.fixture
def node(serve: Callable[..., Any], tmp_path: Path) -> Node:
    config = StorageSettings(collect_every=0.0)
    storage: Storage = serve(StorageServer, folder=tmp_path, config=config).client(badge=3)
    rows: Keyspace[Row] = serve.keyspace("feedback", Row)  # type: ignore[attr-defined]
    store = Holding(transport_of(rows.state))
    texts = Holding(transport_of(storage))
    served = serve(Server, storage=bind(Storage, texts), rows=Keyspace(bind(State, store), Row))
    others = serve.keyspace("others", int)  # type: ignore[attr-defined]
    return Node(served.client(badge=SUBMITTER), storage, served, store, texts, others)


@pytest.mark.parametrize("rater", [Rater("ann", badge=21), Rater("eve", badge=SUBMITTER)])
def test_a_submission_that_is_committed_after_an_appointment_is_held_to_it(node: Node, rater: Rater) -> None:
    [ref] = node.storage.put_many.now([b"a text"])
    node.store.hold("State.finish")
    submitted = node.feedback.submit.start(Batch("b", [rating(ref, 1.0, rater="ann")]))
    assert node.store.held.wait(60)
    node.feedback.appoint.now(rater)
    node.store.release()
    with pytest.raises(Invalid, match=r"expected a rater for whom this capability .* got 'ann'"):
        submitted.result()
    with pytest.raises(NoSuchBatch):
        node.feedback.batch.now("b")
    checked = node.feedback.check.now()
    assert (checked.problems, checked.stray) == ([], [])


def test_a_batch_that_one_may_not_submit_keeps_its_texts_where_another_submits_it_meanwhile(
    node: Node,
) -> None:
    """What the first had referred to, and lets go of, is what the other's rows name."""
    [ref] = node.storage.put_many.now([b"a text"])
    batch = Batch("b", [rating(ref, 1.0, rater="ann")])
    node.store.hold("State.finish")
    node.texts.hold("Storage.release")
    refused = node.feedback.submit.start(batch)
    assert node.store.held.wait(60)
    node.feedback.appoint.now(Rater("ann", badge=21))
    node.store.release()
    assert node.texts.held.wait(60)
    stored = node.served.client(badge=21).submit.start(batch)
    for _ in range(100):  # as far as it gets: to the end, or to where it waits for the other
        node.feedback.head.now()
    node.texts.release()
    with pytest.raises(Invalid):
        refused.result()
    assert not stored.result().repeated
    checked = node.feedback.check.now()
    assert (checked.batches, checked.problems, checked.stray) == (1, [], [])


def test_a_submission_is_not_kept_from_its_end_by_appointments(node: Node) -> None:
    """Those wait, from its first conflict on, also where another process's brings it a second one."""
    state = bind(State, node.store.inner)

    def again() -> None:
        """Let it go on to the end of its next attempt."""
        node.store.hold("State.finish")
        node.store.release()
        assert node.store.held.wait(60)
        node.served.settle()

    node.store.hold("State.finish")
    submitted = node.feedback.submit.start(Batch("b", [rating("x", 1.0, rater="ann")]))
    assert node.store.held.wait(60)
    node.feedback.appoint.now(Rater("bob", trust=0.5))
    again()
    appointed = node.feedback.appoint.start(Rater("carl", trust=0.5))
    node.served.settle()
    last = state.get.now(b"rater")
    assert last is not None
    state.commit.now([Write(last.key, last.value)])
    again()
    node.store.release()
    receipt = submitted.result()
    assert not receipt.repeated
    assert appointed.result() > receipt.revision


def test_after_an_appointment_of_its_own_a_server_goes_by_what_it_knows_again(node: Node) -> None:
    node.feedback.appoint.now(Rater("ann", badge=SUBMITTER))
    for number in range(1000):  # until the feed has brought the appointment
        node.store.calls.clear()
        node.feedback.submit.now(Batch(f"b-{number}", [rating("x", 1.0, rater="ann")]))
        if not node.store.calls["State.scan"]:
            break
    else:
        pytest.fail("the store is asked for the raters with each batch")


def test_a_batch_of_tasks_that_are_known_asks_the_store_for_none_of_them(node: Node) -> None:
    tasks = [f"task-{number}" for number in range(200)]
    node.feedback.submit.now(Batch("first", [rating("x", 1.0, task=task) for task in tasks]))
    node.store.calls.clear()
    node.feedback.submit.now(Batch("second", [rating("x", 0.0, task=task) for task in tasks]))
    asked = {method: count for method, count in node.store.calls.items() if count}
    assert asked == {"State.begin": 1, "State.read": 1, "State.commit": 1, "State.finish": 1}
    assert node.feedback.check.now().problems == []


async def test_a_submission_in_somebody_elses_transaction_is_committed_as_it_was_checked_or_not_at_all(
    node: Node,
) -> None:
    async def submit(name: str, meanwhile: Rater | None = None) -> None:
        async with node.others.transaction() as tx:
            await tx.share(node.feedback).submit(Batch(name, [rating("x", 1.0, rater="ann")]))
            if meanwhile is not None:
                await node.feedback.appoint(meanwhile)

    await submit("first")
    with pytest.raises(Conflict):
        await submit("second", meanwhile=Rater("ann", badge=21))
    assert [info.id for info in await node.feedback.batches()] == ["first"]
    assert (await node.feedback.check()).problems == []


async def test_what_is_refused_in_somebody_elses_transaction_takes_no_texts_of_a_stored_batch(
    node: Node,
) -> None:
    """As of the beginning of that transaction there is no such batch."""
    [ref] = await node.storage.put_many([b"a text"])
    stored = Batch("b", [rating(ref, 1.0)])

    async def refused() -> None:
        async with node.others.transaction() as tx:
            shared = tx.share(node.feedback)
            await shared.submit(Batch("b", [rating("x", 1.0)]))
            assert not (await node.feedback.submit(stored)).repeated
            with pytest.raises(BatchExists):
                await shared.submit(stored)

    with pytest.raises(Conflict):
        await refused()
    checked = await node.feedback.check()
    assert (checked.batches, checked.problems, checked.stray) == (1, [], [])
