"""Sets as of a revision and of a time, whatever is submitted, taken back or thought of raters later."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.state import Ahead
from atoll.ipc.testing import EPOCH
from atoll.servers.feedback.interface import Batch, Feedback, Invalid, Rater, Selection, Source

from .conftest import SUBMITTER, Node
from .said import rating, ratings, set_of

HOUR = 3600.0


def contents(feedback: Feedback, as_of: int | float | None = None, trust: float = 0.0) -> bytes:
    """A whole training set and a draw of pairs, as bytes."""
    records = list(feedback.training_set.now("film", as_of, trust))
    pairs = list(feedback.draw_pairs.now("film", 3, 40, as_of, trust))
    return msgspec.msgpack.encode((records, pairs))


@pytest.fixture
def today(node: Node) -> Node:
    """The server's clock, which stands still, is past the store's, which does not."""
    node.served.advance(time.time() - EPOCH + HOUR)
    return node


def test_a_set_is_the_same_bytes_whatever_comes_later(today: Node) -> None:
    feedback = today.feedback
    moments: dict[int, bytes] = {}

    def remember(revision: int) -> None:
        moments[revision] = contents(feedback, revision)

    remember(feedback.submit.now(Batch("one", ratings(20))).revision)
    remember(feedback.submit.now(Batch("two", ratings(20, first=20))).revision)
    remember(feedback.appoint.now(Rater("r", trust=0.3)))
    remember(feedback.rollback.now("one", "paid for").revision)
    remember(feedback.appoint.now(Rater("r", trust=0.9)))
    remember(feedback.submit.now(Batch("three", ratings(20, first=5))).revision)
    remember(feedback.rollback.now("two", "wrong").revision)
    assert {revision: contents(feedback, revision) for revision in moments} == moments
    assert len(set(moments.values())) == len(moments)
    assert contents(feedback) == moments[max(moments)]


def test_a_set_as_of_a_time_is_that_of_its_revision(today: Node) -> None:
    feedback = today.feedback
    first = feedback.submit.now(Batch("one", ratings(20)))
    between = time.time()
    second = feedback.rollback.now("one", "again")
    after = time.time()
    assert contents(feedback, between) == contents(feedback, first.revision)
    assert set_of(feedback, as_of=after) == set_of(feedback, as_of=second.revision) == []
    assert (feedback.revision_at.now(between), feedback.revision_at.now(after)) == (
        first.revision,
        second.revision,
    )


def test_a_moment_that_is_none_is_refused(today: Node) -> None:
    """A set as of a time to come would not be the same again; a revision that was written as 17.0 names 1970."""
    feedback = today.feedback
    revision = feedback.submit.now(Batch("one", ratings(2))).revision
    for moment in (time.time() + 2 * HOUR, float("inf"), float("nan"), 17.0, -1.0):
        with pytest.raises(
            BadRequest, match="expected a time that has passed, in seconds since the epoch, and"
        ):
            set_of(feedback, as_of=moment)
    with pytest.raises(BadRequest, match=r"as_of: expected a revision \(0 or more\), got -1"):
        set_of(feedback, as_of=-1)
    with pytest.raises(Ahead):
        set_of(feedback, as_of=revision + 1)
    assert set_of(feedback, as_of=revision - 1) == []


def test_each_row_says_where_it_comes_from(node: Node) -> None:
    feedback = node.feedback
    one = feedback.submit.now(Batch("one", [rating("a", 1.0, rater="ann"), rating("b", 0.0, rater="bob")]))
    two = feedback.submit.now(Batch("two", [rating("c", 0.5, rater="cy", trust=0.9)]))
    stored = {each.record.text: each for each in feedback.training_set.now("film")}  # type: ignore[union-attr]
    assert [(stored[text].batch, stored[text].index, stored[text].revision) for text in "abc"] == [
        ("one", 0, one.revision),
        ("one", 1, one.revision),
        ("two", 0, two.revision),
    ]
    assert next(iter(feedback.records.now(Selection(batch="two")))).revision == two.revision
    pairs = {(pair.chosen, pair.rejected): pair for pair in feedback.draw_pairs.now("film", 1, 9)}
    assert pairs["a", "c"].chosen_from == Source("one", 0, "ann", one.revision)
    assert pairs["a", "c"].rejected_from == Source("two", 0, "cy", two.revision)
    assert (pairs["a", "c"].margin, pairs["a", "c"].trust) == (0.5, 0.5)
    # A later roll-back of another batch leaves it as it is.
    feedback.rollback.now("one", "test")
    (left,) = feedback.training_set.now("film")
    assert (left.batch, left.revision) == ("two", two.revision)


def test_pairs_drawn_from_a_batch_go_with_it(node: Node) -> None:
    """Pairs are drawn and not stored: from the roll-back on none comes from the batch, as of before all do."""
    feedback = node.feedback
    feedback.submit.now(Batch("one", ratings(12)))
    before = feedback.submit.now(Batch("two", ratings(12, first=12))).revision
    drawn = list(feedback.draw_pairs.now("film", 1, 10_000))
    feedback.rollback.now("one", "test")
    after = list(feedback.draw_pairs.now("film", 1, 10_000))
    assert {source.batch for pair in after for source in (pair.chosen_from, pair.rejected_from)} == {"two"}
    assert list(feedback.draw_pairs.now("film", 1, 10_000, before)) == drawn


def test_pairs_are_of_one_prompt(node: Node) -> None:
    held = [rating(f"{prompt} {score}", score, prompt=prompt) for prompt in "pq" for score in (0.0, 0.5, 1.0)]
    node.feedback.submit.now(Batch("b", list(held)))
    pairs = list(node.feedback.draw_pairs.now("film", 1, 100))
    assert len(pairs) == 6
    for pair in pairs:
        assert isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
        assert pair.prompt == pair.chosen[0] == pair.rejected[0]


def test_trust_in_a_rater_counts_from_its_revision_on(node: Node) -> None:
    feedback = node.feedback
    said = [
        rating(f"{rater} {score}", score, 0.8, rater=rater)
        for rater in ("ann", "bob")
        for score in (0.0, 1.0)
    ]
    before = feedback.submit.now(Batch("b", list(said))).revision
    since = feedback.appoint.now(Rater("bob", trust=0.25, note="gives one star to everything"))

    def raters(as_of: int | None, trust: float) -> set[str]:
        return {record.rater for record in set_of(feedback, as_of=as_of, trust=trust)}

    assert raters(before, 0.5) == {"ann", "bob"}
    assert raters(since, 0.5) == raters(None, 0.5) == {"ann"}
    assert raters(None, 0.2) == {"ann", "bob"}
    trusts = {
        each.record.rater: (each.record.trust, each.trust) for each in feedback.training_set.now("film")
    }
    assert trusts == {"ann": (0.8, 0.8), "bob": (0.8, 0.25)}
    assert {pair.trust for pair in feedback.draw_pairs.now("film", 1, 100)} == {0.8, 0.25}
    assert {pair.trust for pair in feedback.draw_pairs.now("film", 1, 100, before)} == {0.8}
    assert feedback.raters.now() == [Rater("bob", trust=0.25, note="gives one star to everything")]


def test_nobody_speaks_for_a_rater_with_a_badge_of_their_own(node: Node, start: Callable[..., Node]) -> None:
    feedback = node.feedback
    ann: Feedback = node.served.client(badge=21)
    feedback.appoint.now(Rater("ann", badge=21))
    told = (
        r"expected a rater for whom this capability may speak, got 'ann', who has a capability of their own"
    )
    with pytest.raises(Invalid, match=told + r" - at `\$.records\[1\].rater`"):
        feedback.submit.now(Batch("b", [rating("x", 1.0), rating("x", 1.0, rater="ann")]))
    with pytest.raises(
        Invalid, match=r"for whom this capability speaks \('ann'\), got 'bob' - at `\$.records\[0\]"
    ):
        ann.submit.now(Batch("b", [rating("x", 1.0, rater="bob")]))
    ann.submit.now(Batch("b", [rating("x", 1.0, rater="ann")]))
    assert feedback.batch.now("b").badge == 21
    node.served.kill()
    again = start()
    with pytest.raises(Invalid, match="who has a capability of their own"):
        again.feedback.submit.now(Batch("c", [rating("x", 1.0, rater="ann")]))
    again.feedback.appoint.now(Rater("ann", badge=SUBMITTER))
    again.feedback.submit.now(Batch("c", [rating("x", 1.0, rater="ann")]))
    again.feedback.appoint.now(Rater("ann"))
    again.served.client(badge=5).submit.now(Batch("d", [rating("x", 1.0, rater="ann")]))


@pytest.mark.parametrize(
    ("rater", "told"),
    [
        (Rater("a/b"), r"expected a name .* got 'a/b' - at `\$.rater.name`"),
        (Rater("a", trust=float("nan")), r"expected a trust from 0 to 1, got nan - at `\$.rater.trust`"),
        (Rater("a", badge=-1), r"expected a badge, or 0 for anybody's, got -1 - at `\$.rater.badge`"),
        (Rater("a", note="\x07"), r"expected a line or a few .* - at `\$.rater.note`"),
    ],
)
def test_a_wrong_rater_is_named(node: Node, rater: Rater, told: str) -> None:
    with pytest.raises(Invalid, match=told):
        node.feedback.appoint.now(rater)
    assert node.feedback.raters.now() == []


def test_raters_are_listed_in_pages(node: Node) -> None:
    names = [f"r{number:02d}" for number in range(12)]
    for name in names:
        node.feedback.appoint.now(Rater(name))
    first = node.feedback.raters.now(limit=5)
    assert [each.name for each in first + node.feedback.raters.now(first[-1].name)] == names
    with pytest.raises(BadRequest, match=r"\$.limit: expected 1 to 1000, got 1001"):
        node.feedback.raters.now(limit=1001)


def test_what_was_taken_back_twice_stays_taken_back_once(node: Node) -> None:
    feedback = node.feedback
    feedback.submit.now(Batch("one", ratings(3)))
    both: list[Any] = [feedback.rollback.start("one", f"reason {number}") for number in range(4)]
    done = [future.result() for future in both]
    assert len({each.revision for each in done}) == 1
    assert sum(not each.repeated for each in done) == 1
    assert len({feedback.batch.now("one").reason} & {f"reason {number}" for number in range(4)}) == 1
