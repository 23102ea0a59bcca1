"""What a careless or hostile rater sends: each ends in a sentence, stores nothing, and spoils nothing for others."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from atoll.ipc.errors import BadRequest, TooLarge
from atoll.ipc.proxy import Options, transport_of
from atoll.ipc.runtime.describe import describe
from atoll.servers.feedback.interface import Batch, BatchInfo, Feedback, Invalid, NoSuchTask, Rater, Selection
from atoll.servers.feedback.records import Preference, Record
from atoll.servers.feedback.server import Server, Settings
from atoll.servers.storage.interface import BlobRef

from .conftest import Node
from .said import rating, ratings, set_of


def raw(feedback: Feedback, payload: bytes) -> Any:
    """What the server makes of bytes that no client of ours would send as the arguments of `submit`."""
    return transport_of(feedback).call_now(Feedback.submit.spec, payload, Options())


def batch_bytes(**changed: object) -> bytes:
    """The encoded arguments of `submit`, with a field of the record replaced by anything at all."""
    record = msgspec.to_builtins(rating("fine", 1.0)) | changed
    return msgspec.msgpack.encode([{"id": "b", "records": [record]}])


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (
            batch_bytes(text="PLACE").replace(b"PLACE", b"\xff\xfe\xff\xfe\xff"),
            "expected valid UTF-8|[Ii]nvalid",
        ),
        (batch_bytes(score=None), r"records\[0\].score.*expected `float`, got `None`"),
        (batch_bytes(score="1"), r"records\[0\].score.*expected `float`, got `str`"),
        (batch_bytes(kind="praise"), r"records\[0\].kind.*'praise'"),
        (batch_bytes(text=[b"x" * 32]), r"records\[0\].text.*expected `array` of .*length"),
        (batch_bytes(text={"hash": 1}), r"records\[0\].text.*expected `.*`, got `object`"),
        (b"\x91" * 100_000 + b"\x90", "expected"),
        (b"\x91\xdd\xff\xff\xff\xff", "expected"),
        (b"", "expected"),
        (b"\xc1", "expected"),
    ],
    ids=["utf-8", "null", "text", "kind", "array", "map", "deep", "long", "empty", "reserved"],
)
def test_malformed_bytes_are_named(node: Node, payload: bytes, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        raw(node.feedback, payload)
    assert node.feedback.statistics.now().batches == 0
    assert node.feedback.submit.now(Batch("b", ratings(1))).records == 1


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), -0.1, 1.1, 1e308])
def test_numbers_out_of_range_are_refused(node: Node, number: float) -> None:
    with pytest.raises(Invalid, match=r"expected a score from 0 to 1, got .* - at `\$.records\[1\].score`"):
        node.feedback.submit.now(Batch("b", [rating("a", 1.0), rating("b", number)]))
    with pytest.raises(Invalid, match=r"expected a trust from 0 to 1, .* - at `\$.records\[0\].trust`"):
        node.feedback.submit.now(Batch("b", [rating("a", 1.0, trust=number)]))
    node.feedback.submit.now(Batch("b", [rating("a", 1.0)]))
    told = r"min_trust: expected a trust from 0 to 1, got"
    selection = Selection(min_trust=number)
    for ask in (
        lambda: list(node.feedback.training_set.now("film", None, number)),
        lambda: list(node.feedback.draw_pairs.now("film", 1, 1, None, number)),
        lambda: list(node.feedback.records.now(selection)),
        lambda: node.feedback.batches.now(selection),
    ):
        with pytest.raises(BadRequest, match=told):
            ask()


def test_texts_are_kept_as_they_are(node: Node) -> None:
    """Control characters, right-to-left marks, unpaired combining marks: they are what people wrote."""
    odd = [
        "\0",
        "\x1b[2J\x07",
        "a\u202eb",
        "\u0301",
        "\ufeff",
        "\U0010ffff",
        "line\r\nline\u2028",
        " ",
        "𒐫" * 1000,
    ]
    node.feedback.submit.now(Batch("b", [rating(text, 1.0) for text in odd]))
    assert [record.text for record in set_of(node.feedback)] == odd  # type: ignore[union-attr]


def test_names_do_not_leave_their_place_in_the_store(node: Node) -> None:
    node.feedback.submit.now(Batch("b", ratings(3)))
    for name in ("film/rating", "film/rating/5/b", "../batch/b", "film\0", "film\n", "fılm", "", "x" * 65):
        with pytest.raises(Invalid, match="expected a name"):
            node.feedback.submit.now(Batch("c", [rating("a", 1.0, task=name)]))
        with pytest.raises(Invalid, match="expected a name"):
            node.feedback.submit.now(Batch(name, ratings(1)))
        with pytest.raises(NoSuchTask):
            set_of(node.feedback, name)
        assert list(node.feedback.records.now(Selection(task=name or "none"))) == []


def test_a_note_is_short_and_plain(node: Node) -> None:
    """It stands in every list of batches: one long note would make the list larger than any reply."""
    for note in ("x" * 1001, "é" * 501, "\x1b[2J", "a\0b", "\x9b"):
        with pytest.raises(Invalid, match=r"expected a line or a few .* - at `\$.note`"):
            node.feedback.submit.now(Batch("b", ratings(1), note))
        node.feedback.submit.now(Batch("a", ratings(1), "fine\n\ttoo"))
        with pytest.raises(Invalid, match=r"expected a line or a few .* - at `\$.reason`"):
            node.feedback.rollback.now("a", note)
    assert node.feedback.batch.now("a").status == "stored"


def test_many_tasks_and_groups_do_not_hide_the_rest(start: Callable[..., Node]) -> None:
    """A flood of task names is cut where it comes in, and what is listed of it stays small."""
    node = start(Settings(batch_groups=400))
    many = [rating("a", 1.0, task=f"task-{number}") for number in range(400)]
    with pytest.raises(Invalid, match="at most 400 groups of one task, kind and tenth of trust"):
        node.feedback.submit.now(Batch("b", [*many, rating("a", 1.0)]))
    for number in range(40):
        held: list[Record] = [rating("a", 1.0, task=f"{number}-{task}" + "x" * 50) for task in range(400)]
        node.feedback.submit.now(Batch(f"b{number:02d}", held))
    found: list[BatchInfo] = []
    while page := node.feedback.batches.now(after=found[-1].id if found else "", limit=1000):
        assert len(msgspec.msgpack.encode(page)) < 1024 * 1024
        found += page
    assert [info.id for info in found] == [f"b{number:02d}" for number in range(40)]
    told = node.feedback.statistics.now()
    assert (len(told.tasks), told.further_tasks, told.records) == (1000, 15_000, 16_000)
    assert len(msgspec.msgpack.encode(told)) < 1024 * 1024


def test_a_list_of_raters_fits_a_reply(node: Node) -> None:
    """However much was noted of each."""
    names = [f"{number:04d}".ljust(64, "x") for number in range(1100)]
    for name in names:
        node.feedback.appoint.now(Rater(name, 0.5, note="x" * 1000))
    found: list[Rater] = []
    while page := node.feedback.raters.now(found[-1].name if found else ""):
        assert len(msgspec.msgpack.encode(page)) < 1024 * 1024
        found += page
    assert [rater.name for rater in found] == names


def test_a_batch_of_a_hundred_thousand_records(start: Callable[..., Node]) -> None:
    """Refused by default; whole where the image allows it; too much for one transaction in a sentence."""
    held: list[Record] = [
        rating("x", number / 100_000, rater=f"r{number % 50:05d}") for number in range(100_000)
    ]
    node = start()
    with pytest.raises(Invalid, match="expected 1 to 50 records in a batch, got 100000 records"):
        node.feedback.submit.now(Batch("b", held))
    node = start(Settings(batch_records=100_000))
    assert node.feedback.submit.now(Batch("b", held)).records == 100_000
    assert sum(1 for _ in node.feedback.training_set.now("film")) == 100_000
    assert node.feedback.check.now().problems == []
    with pytest.raises(TooLarge):
        node.feedback.submit.now(Batch("c", held * 2))


def test_a_text_that_storage_does_not_have_as_it_is_told_is_named(node: Node) -> None:
    good, other = node.storage.put_many.now([b"good", b"other"])
    lie = BlobRef(other.hash, other.size + 1)
    held = Preference(
        rater="r", role="expert", trust=1.0, task="film", chosen=good, rejected=BlobRef(b"x" * 32, 4)
    )
    with pytest.raises(Invalid, match=r"texts that are in storage .* at `\$.records\[1\].rejected`"):
        node.feedback.submit.now(Batch("b", [rating(good, 1.0), held]))
    told = r"expected the size that this blob has \(5 bytes\), got blob .* \(6 bytes\) - at `\$.records\[0\].text`"
    with pytest.raises(Invalid, match=told):
        node.feedback.submit.now(Batch("b", [rating(lie, 1.0)]))
    with pytest.raises(Invalid, match=told):
        node.feedback.submit.now(Batch("b", [rating(lie, 1.0), rating(other, 1.0)]))
    assert node.feedback.check.now().stray == []


def test_duplicates_are_kept_and_the_batch_only_once(node: Node) -> None:
    """The same words twice are two records: who floods with them is found by rater and badge, not hidden."""
    same: list[Record] = [rating("again", 1.0)] * 5
    node.feedback.submit.now(Batch("b", same))
    assert node.feedback.submit.now(Batch("b", same)).repeated
    node.feedback.submit.now(Batch("c", same))
    assert len(set_of(node.feedback)) == 10


def test_a_role_that_is_trusted_beyond_reason_is_refused(start: Callable[..., Node]) -> None:
    told = "feedback, config.roles.expert: expected a trust from 0 to 1, got 1.5"
    with pytest.raises(BadRequest, match=told):
        start(Settings(roles={"expert": 1.5}))


@pytest.mark.parametrize("name", ["batch_records", "inline_bytes", "batch_bytes", "batch_groups"])
def test_a_bound_of_nothing_is_found_with_the_image(name: str) -> None:
    assert not describe(Server, {"config": {name: 1}}).config_faults
    fault = describe(Server, {"config": {name: 0}}).config_faults["config"]
    assert (fault.path, fault.expected, fault.found) == ((name,), "int >= 1", "0")
