"""The feedback server as its clients see it, over a real storage server and store."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.state import Ahead
from atoll.servers.feedback import reviews
from atoll.servers.feedback.interface import (
    Batch,
    BatchExists,
    Feedback,
    Invalid,
    NoSuchBatch,
    NoSuchTask,
    Selection,
)
from atoll.servers.feedback.records import Preference, Record
from atoll.servers.storage.interface import BlobRef

from .conftest import GRACE, Node
from .said import rating, ratings, set_of


def test_a_batch_is_stored_whole_and_found_by_batch_task_kind_and_trust(node: Node) -> None:
    pair = Preference(rater="r", role="expert", trust=1.0, task="chat", chosen="a", rejected="b", prompt="p")
    held: list[Record] = [*ratings(20), pair]
    receipt = node.feedback.submit.now(Batch("b-1", held, note="first"))
    assert (receipt.records, receipt.repeated) == (21, False)
    info = node.feedback.batch.now("b-1")
    assert (info.status, info.records, info.badge, info.note) == ("stored", 21, 8, "first")
    assert info.revision == receipt.revision

    def select(**wanted: Any) -> list[Record]:
        return [stored.record for stored in node.feedback.records.now(Selection(**wanted))]

    assert select(batch="b-1") == held
    assert select(task="chat") == select(kind="preference") == [pair]
    assert sorted(map(repr, select(min_trust=0.75))) == sorted(
        repr(each) for each in held if each.trust >= 0.75
    )
    assert [stored.index for stored in node.feedback.records.now(Selection(batch="b-1", task="chat"))] == [20]
    assert [each.id for each in node.feedback.batches.now(Selection(kind="preference"))] == ["b-1"]
    assert node.feedback.batches.now(Selection(task="other")) == []


def test_now_is_the_newest_revision_and_costs_the_right_to_read(node: Node) -> None:
    before = node.feedback.head.now()
    stored = node.feedback.submit.now(Batch("b-1", ratings(7))).revision
    assert before < stored <= node.feedback.head.now() == node.feedback.statistics.now().revision
    assert Feedback.head.spec.right == "read"


def test_one_bad_record_fails_the_batch_and_nothing_is_stored(node: Node) -> None:
    bad = [*ratings(7), rating("x", 1.5)]
    with pytest.raises(
        Invalid, match=r"expected a score from 0 to 1, got 1.5 - at `\$.records\[7\].score`"
    ) as found:
        node.feedback.submit.now(Batch("b-1", bad))
    assert (found.value.index, found.value.field) == (7, "score")
    missing = BlobRef.of(b"never put")
    with pytest.raises(Invalid, match=r"texts that are in storage .* at `\$.records\[3\].text`"):
        node.feedback.submit.now(Batch("b-1", [*ratings(3), rating(missing, 1.0)]))
    with pytest.raises(BadRequest, match=r"batch.records\[0\].trust\): expected `float`, got `str`"):
        node.feedback.submit.now(Batch("b-1", [rating("x", 1.0, trust="high")]))  # type: ignore[arg-type]
    with pytest.raises(NoSuchBatch):
        node.feedback.batch.now("b-1")
    assert node.feedback.statistics.now().records == 0
    assert list(node.feedback.records.now()) == []


def test_a_repeated_submission_is_the_first_one(node: Node, start: Callable[[], Node]) -> None:
    first = node.feedback.submit.now(Batch("b-1", ratings(5)))
    again = node.feedback.submit.now(Batch("b-1", ratings(5)))
    assert (again.revision, again.repeated) == (first.revision, True)
    node.served.kill()
    after = start().feedback.submit.now(Batch("b-1", ratings(5)))
    assert (after.revision, after.repeated) == (first.revision, True)
    with pytest.raises(BatchExists, match="'b-1' is already stored"):
        start().feedback.submit.now(Batch("b-1", ratings(6)))


def test_many_submissions_of_one_batch_at_once_store_it_once(node: Node) -> None:
    futures = [node.feedback.submit.start(Batch("b-1", ratings(5))) for _ in range(6)]
    receipts = [future.result() for future in futures]
    assert len({receipt.revision for receipt in receipts}) == 1
    assert sum(not receipt.repeated for receipt in receipts) == 1
    assert len(set_of(node.feedback)) == 5


def test_a_roll_back_is_a_new_transaction_and_the_past_stays(node: Node) -> None:
    one = node.feedback.submit.now(Batch("one", ratings(10)))
    two = node.feedback.submit.now(Batch("two", ratings(10, first=10)))
    taken = node.feedback.rollback.now("one", "paid for")
    assert taken.revision > two.revision
    assert set_of(node.feedback) == set_of(node.feedback, as_of=taken.revision)
    assert {repr(each) for each in set_of(node.feedback)} == {repr(each) for each in ratings(10, first=10)}
    assert len(set_of(node.feedback, as_of=two.revision)) == 20
    assert len(set_of(node.feedback, as_of=one.revision)) == 10
    info = node.feedback.batch.now("one")
    assert (info.status, info.reason, info.revision) == ("rolled back", "paid for", taken.revision)
    assert list(node.feedback.records.now(Selection(batch="one"))) == []
    again = node.feedback.rollback.now("one", "once more")
    assert (again.revision, again.repeated) == (taken.revision, True)
    with pytest.raises(BatchExists, match="rolled back"):
        node.feedback.submit.now(Batch("one", ratings(10)))
    statistics = node.feedback.statistics.now()
    assert (statistics.batches, statistics.rolled_back, statistics.records) == (2, 1, 10)
    with pytest.raises(NoSuchBatch):
        node.feedback.rollback.now("none", "why")
    with pytest.raises(Ahead):
        set_of(node.feedback, as_of=10_000)


def test_texts_in_storage_stay_as_long_as_history_names_them(node: Node) -> None:
    refs = node.storage.put_many.now([b"good", b"bad"]) + node.storage.put_many.now([b"unused"])
    held: list[Record] = [rating(refs[0], 1.0), rating(refs[1], 0.0)]
    node.feedback.submit.now(Batch("b", held))
    with pytest.raises(BatchExists):
        node.feedback.submit.now(Batch("b", [rating(refs[2], 1.0)]))
    node.feedback.rollback.now("b", "test")
    with pytest.raises(BatchExists):
        node.feedback.submit.now(Batch("b", held))
    node.storage_served.advance(GRACE + 1)
    assert node.storage.collect.now().blobs == 1
    assert node.storage.get_many.now([refs[0].hash, refs[1].hash]) == [b"good", b"bad"]


def test_pairs_are_the_same_for_a_seed_and_revision(node: Node) -> None:
    receipt = node.feedback.submit.now(Batch("one", ratings(30)))
    drawn = list(node.feedback.draw_pairs.now("film", 7, 50, receipt.revision))
    node.feedback.submit.now(Batch("two", ratings(30, first=30)))
    assert list(node.feedback.draw_pairs.now("film", 7, 50, receipt.revision)) == drawn
    assert list(node.feedback.draw_pairs.now("film", 7, 50)) != drawn
    assert list(node.feedback.draw_pairs.now("film", 8, 50, receipt.revision)) != drawn
    assert list(node.feedback.draw_pairs.now("film", 7, 50, receipt.revision, 0.0, 20)) == drawn[20:]
    with pytest.raises(NoSuchTask, match=r"no batch has the task 'films' \(did you mean 'film'\?\)"):
        list(node.feedback.draw_pairs.now("films", 7, 50))
    every = list(node.feedback.draw_pairs.now("film", 7, 100_000, receipt.revision))
    assert len(every) == 300
    assert all(pair.trust >= 0.5 for pair in node.feedback.draw_pairs.now("film", 7, 50, None, 0.5))


def test_agreement_and_statistics(node: Node) -> None:
    said = [("a", "x", 1.0), ("b", "x", 1.0), ("a", "y", 0.0), ("b", "y", 0.0), ("c", "z", 0.5)]
    node.feedback.submit.now(Batch("b", [rating(text, score, rater=rater) for rater, text, score in said]))
    found = node.feedback.agreement.now("film")
    assert (found.items, found.ratings, found.alpha) == (2, 4, 1.0)
    (task,) = node.feedback.statistics.now().tasks
    assert (task.task, task.kinds, task.bands[5]) == ("film", {"rating": 5}, 5)


def test_batches_are_listed_in_pages(node: Node) -> None:
    for number in range(5):
        node.feedback.submit.now(Batch(f"b{number}", ratings(1)))
    first = node.feedback.batches.now(limit=3)
    rest = node.feedback.batches.now(after=first[-1].id, limit=3)
    assert [each.id for each in first + rest] == ["b0", "b1", "b2", "b3", "b4"]


def test_the_real_reviews_go_in(node: Node, start: Callable[[], Node]) -> None:
    try:
        path = reviews.locate()
    except reviews.MissingReviews as missing:
        pytest.skip(str(missing))

    def some() -> Iterator[reviews.Submission]:
        for number, submission in enumerate(reviews.submissions(path)):
            if number % 20 == 0:
                yield submission._replace(
                    texts=submission.texts[:50],
                    batch=Batch(submission.batch.id, submission.batch.records[:50], submission.batch.note),
                )

    stored = 0
    for texts, batch in some():
        node.storage.put_many.now(texts)
        stored += node.feedback.submit.now(batch).records
    assert node.feedback.statistics.now().records == stored > 200
    node.served.kill()
    again = start()
    assert all(again.feedback.submit.now(batch).repeated for _, batch in some())
    (pair,) = again.feedback.draw_pairs.now("film-review.imdb", 1, 1)
    assert isinstance(pair.chosen, BlobRef)
    assert len(again.storage.get_many.now([pair.chosen.hash])[0]) == pair.chosen.size
