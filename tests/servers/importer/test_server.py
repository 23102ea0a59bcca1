"""What an import does with a file's batches, and what it tells of them."""

from typing import Any

import msgspec
import pytest

from atoll.ipc.durable import Start
from atoll.servers.feedback.interface import Batch, Rater
from atoll.servers.feedback.records import Rating
from atoll.servers.importer.interface import MOST_LEFT, Imported, Importer, Left
from atoll.servers.importer.server import LONGEST, OWNER, PART
from atoll.servers.storage.interface import BlobRef, NoSuchBlob, WrongSize

from .conftest import GRACE, SUBMITTER, Node
from .files import batch, batches, held, line, put, said

MANY = 3 * PART + 1


def test_all_batches_of_a_file_are_in_and_counted(node: Node, importer: Importer) -> None:
    given = batches(MANY)
    done = importer.bring_in.now(put(node.storage, given))
    assert held(node.feedback) == said(given)
    assert (done.taken, done.records) == (MANY, sum(len(each.records) for each in given))
    assert (done.before, done.taken_back, done.refused, done.left) == (0, 0, 0, [])
    assert {each.badge for each in node.feedback.batches.now()} == {SUBMITTER}
    assert done.revision == max(each.revision for each in node.feedback.batches.now())


def test_what_was_there_before_is_told_from_what_was_taken(node: Node, importer: Importer) -> None:
    given = batches(MANY)
    for each in given[5:10]:
        node.feedback.submit.now(each)
    done = importer.bring_in.now(put(node.storage, given))
    assert (done.taken, done.before) == (MANY - 5, 5)
    assert held(node.feedback) == said(given)
    again = importer.bring_in.now(put(node.storage, given))
    assert (again.taken, again.before, again.records) == (0, MANY, 0)


def test_a_batch_that_was_taken_back_stays_so(node: Node, importer: Importer) -> None:
    given = batches(MANY)
    file = put(node.storage, given)
    importer.bring_in.now(file)
    node.feedback.rollback.now("b-003", "a test")
    again = importer.bring_in.now(file)
    assert (again.before, again.taken_back) == (MANY - 1, 1)
    place = sum(len(line(each)) + 1 for each in given[:3])
    assert again.left == [Left(place, "b-003", "taken back")]
    assert "b-003" not in held(node.feedback)


def test_an_import_is_begun_once_under_its_id(node: Node, importer: Importer) -> None:
    file = put(node.storage, batches(MANY))
    for _ in range(2):
        importer.bring_in.begin.now(Start(id="monday"), file)
    first = importer.bring_in.result.now("monday")
    node.feedback.rollback.now("b-003", "a test")
    importer.bring_in.begin.now(Start(id="monday"), file)
    assert importer.bring_in.result.now("monday") == first
    assert node.feedback.batch.now("b-003").status == "rolled back"


def test_what_is_no_batch_is_refused_with_its_place_and_the_others_go_in(
    node: Node, importer: Importer
) -> None:
    good = batches(2)
    wrong = msgspec.structs.replace(batch("wrong"), records=[rating(1.5)])
    stood = batch("stood")
    node.feedback.submit.now(batch("stood", 5))
    lines: list[Batch | bytes] = [
        good[0],
        b"",
        b"no json",
        b'{"id": 7, "records": []}',
        b"[" * 100_000,
        b" " * LONGEST,
    ]
    lines += [b"", b" " * (LONGEST + 1), wrong, stood, Batch("nobody's business", [rating(0.5)]), good[1]]
    done = importer.bring_in.now(put(node.storage, lines))
    assert (done.taken, done.refused) == (2, 7)
    assert held(node.feedback) == said([*good, batch("stood", 5)])
    told = [(each.batch, each.reason) for each in done.left]
    assert told == [
        ("", "expected a batch as JSON - at `$`"),
        ("", "expected a batch as JSON - at `$.id`"),
        ("", "expected a batch as JSON - at `$`"),
        ("", f"expected a line of {LONGEST} bytes at most"),
        ("wrong", "expected a score from 0 to 1 - at `$.records[0].score`"),
        ("stood", "expected another id, or the records of the batch that has it - at `$.id`"),
        (
            "",
            "expected a name (a letter or digit, then letters, digits and `._:-`, 64 characters at most) - at `$.id`",
        ),
    ]
    written = b"".join((line(each) if isinstance(each, Batch) else each) + b"\n" for each in lines)
    ends = [written.index(b"\n", each.place) for each in done.left]
    assert [written[each.place : end][:20] for each, end in zip(done.left, ends, strict=True)] == [
        (line(each) if isinstance(each, Batch) else each)[:20]
        for each in (lines[2], lines[3], lines[4], lines[7], wrong, stood, lines[10])
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'"\xff"', "a batch as JSON"),
        (b'["AA==",%d]' % 2**64, "a batch with whole numbers of 64 bits at most"),
    ],
    ids=["no UTF-8", "a number that is too large"],
)
def test_what_no_message_can_hold_is_refused_and_the_others_go_in(
    node: Node, importer: Importer, text: bytes, expected: str
) -> None:
    good, wrong = batches(3), line(batch("wrong")).replace(b'"wrong 1"', text)
    importer.bring_in.begin.now(Start(id="monday"), put(node.storage, [good[0], wrong, *good[1:]]))
    done = importer.bring_in.result.now("monday")
    assert (done.taken, done.refused) == (3, 1)
    assert [(each.place, each.reason) for each in done.left] == [
        (len(line(good[0])) + 1, f"expected {expected} - at `$`")
    ]
    assert held(node.feedback) == said(good)


def test_the_first_hundred_that_are_left_are_named(node: Node, importer: Importer) -> None:
    done = importer.bring_in.now(put(node.storage, [b"no"] * (MOST_LEFT + PART + 1)))
    assert done.refused == MOST_LEFT + PART + 1
    assert [each.place for each in done.left] == [3 * number for number in range(MOST_LEFT)]


def test_an_id_that_comes_again_is_that_of_the_first(node: Node, importer: Importer) -> None:
    given = [batch("a"), batch("b"), batch("a"), batch("b", 7), batch("c")]
    done = importer.bring_in.now(put(node.storage, given))
    assert (done.taken, done.before, done.refused) == (3, 1, 1)
    assert held(node.feedback) == said([batch("a"), batch("b"), batch("c")])


def test_a_file_without_a_last_newline_and_one_of_nothing(node: Node, importer: Importer) -> None:
    assert importer.bring_in.now(node.storage.put.now([line(batch("a"))])).taken == 1
    empty = importer.bring_in.now(node.storage.put.now([]))
    assert (empty.taken, empty.refused) == (0, 0)


def test_who_has_a_capability_of_their_own_is_not_spoken_for(node: Node, importer: Importer) -> None:
    node.feedback.appoint.now(Rater("r-0", badge=77))
    done = importer.bring_in.now(put(node.storage, [batch("a")]))
    assert done.refused == 1
    assert done.left[0].reason.endswith("at `$.records[0].rater`")
    assert held(node.feedback) == {}


def test_no_word_of_a_rater_is_in_the_rows_of_an_import(node: Node, serve: Any) -> None:
    secret = "xyzzy-plugh"
    said_ = [rating(0.5, text=secret, rater=f"{secret} {secret}"), rating(1.5, text=secret)]
    lines: list[Batch | bytes] = [Batch(f"b-{number}", [each]) for number, each in enumerate(said_)]
    lines += [
        Batch(f"{secret} {secret}", [rating(0.5)]),
        f'{{"id": "c", "records": [{{"kind": "{secret}"}}]}}'.encode(),
    ]
    importer = node.importer().client(badge=5)
    assert importer.bring_in.now(put(node.storage, lines)).refused == 4
    state = serve.keyspace("imports", int).state
    values = [item.value for item in state.range.now(b"", b"").items]
    assert values
    assert not any(secret.encode() in (value or b"") for value in values)


def test_the_file_is_kept_until_its_import_has_ended(node: Node, importer: Importer) -> None:
    own = node.storage_served.client(badge=4)
    file = put(node.storage, batches(2))
    importer.bring_in.now(file)
    assert own.references.now(OWNER) == []
    node.storage_served.advance(GRACE + 1)
    node.storage.collect.now()
    with pytest.raises(NoSuchBlob):
        importer.bring_in.now(file)
    there = put(node.storage, batches(2))
    with pytest.raises(WrongSize):
        importer.bring_in.now(BlobRef(there.hash, there.size - 1))
    assert own.references.now(OWNER) == []


def rating(score: float, text: str = "t", rater: str = "r") -> Rating:
    return Rating(rater=rater, role="expert", trust=0.5, task="film", text=text, score=score)


def test_counts_add_up() -> None:
    left = [Left(place, "", "refused") for place in range(60)]
    one = Imported(taken=1, records=2, before=3, taken_back=4, refused=5, revision=9, left=left)
    both = one.and_then(
        Imported(taken=1, records=1, before=1, taken_back=1, refused=1, revision=7, left=left)
    )
    assert (both.taken, both.records, both.before, both.taken_back, both.refused) == (2, 3, 4, 5, 6)
    assert both.revision == 9
    assert len(both.left) == MOST_LEFT
