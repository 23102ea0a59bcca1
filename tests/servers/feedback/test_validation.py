"""Each wrong record has its exact message."""

from typing import Any

import pytest

from atoll.servers.feedback.interface import Batch, Invalid
from atoll.servers.feedback.records import Correction, Preference, Rating, Record
from atoll.servers.feedback.validation import Bounds, Rules
from atoll.servers.storage.interface import BlobRef

NAME = "a name (a letter or digit, then letters, digits and `._:-`, 64 characters at most)"
NOTE = "a line or a few of 1000 bytes at most, without control characters"
END = "; nothing of the batch was stored: mend it and submit it again"
RULES = Rules({"expert": 1.0, "crowd": 0.5}, Bounds(records=3, inline=20, total=50, groups=2))
GOOD = Rating(rater="r-1", role="expert", trust=0.9, task="film", text="fine", score=0.5)


def rating(**changed: object) -> Rating:
    fields: dict[str, Any] = {name: getattr(GOOD, name) for name in GOOD.__struct_fields__}
    return Rating(**(fields | changed))


def pair(chosen: str, rejected: str) -> Preference:
    return Preference(rater="r", role="expert", trust=1.0, task="film", chosen=chosen, rejected=rejected)


WRONG: list[tuple[Record, str, str, str]] = [
    (rating(task="a/b"), "task", NAME, "'a/b'"),
    (rating(rater=""), "rater", NAME, "''"),
    (rating(role="guru"), "role", "a role of this node (crowd, expert)", "'guru'"),
    (
        rating(role="crowd", trust=0.6),
        "trust",
        "a trust from 0 to 0.5, the most that the role 'crowd' is given",
        "0.6",
    ),
    (
        rating(trust=float("nan")),
        "trust",
        "a trust from 0 to 1, the most that the role 'expert' is given",
        "nan",
    ),
    (rating(score=1.5), "score", "a score from 0 to 1", "1.5"),
    (rating(score=float("nan")), "score", "a score from 0 to 1", "nan"),
    (rating(text=""), "text", "a text", "an empty one"),
    (
        rating(text="é" * 11),
        "text",
        "at most 20 bytes inline (put a longer text into storage and give its reference)",
        "22 bytes",
    ),
    (
        rating(text=BlobRef(b"short", 5)),
        "text",
        "a blob reference with a hash of 32 bytes and a size",
        "BlobRef(hash=b'short', size=5)",
    ),
    (pair("a", "a"), "rejected", "another text than `chosen`", "the same text"),
    (
        Correction(rater="r", role="expert", trust=1.0, task="film", text="a", corrected="a"),
        "corrected",
        "another text than `text`",
        "the same text",
    ),
]


@pytest.mark.parametrize(("record", "field", "expected", "got"), WRONG)
def test_a_wrong_record_is_named(record: Record, field: str, expected: str, got: str) -> None:
    with pytest.raises(Invalid) as refused:
        RULES.check(Batch("b", [GOOD, record]))
    assert str(refused.value) == f"expected {expected}, got {got} - at `$.records[1].{field}`{END}"
    assert refused.value.index == 1


def test_a_wrong_batch_is_named() -> None:
    groups = "at most 2 groups of one task, kind and tenth of trust in a batch"
    inline = "at most 50 bytes of inline text in a batch (put texts into storage)"
    for batch, told in [
        (Batch("a b", [GOOD]), f"expected {NAME}, got 'a b' - at `$.id`"),
        (Batch("b", []), "expected 1 to 3 records in a batch, got 0 records - at `$.records`"),
        (Batch("b", [GOOD] * 4), "expected 1 to 3 records in a batch, got 4 records - at `$.records`"),
        (
            Batch("b", [rating(text="x" * 20)] * 3),
            f"expected {inline}, got 60 bytes - at `$.records`",
        ),
        (
            Batch("b", [rating(task="a"), rating(task="b"), rating(task="c")]),
            f"expected {groups}, got 3 groups - at `$.records`",
        ),
        (
            Batch("b", [GOOD], note="x" * 1001),
            f"expected {NOTE}, got 1001 bytes - at `$.note`",
        ),
        (
            Batch("b", [GOOD], note="clear\x1b[2J"),
            f"expected {NOTE}, got '\\x1b' at 5 - at `$.note`",
        ),
    ]:
        with pytest.raises(Invalid) as refused:
            RULES.check(batch)
        assert str(refused.value) == told + END
    RULES.check(Batch("b", [GOOD, pair("a", "b")]))
