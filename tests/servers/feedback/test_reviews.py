"""The real input, as the package carries it."""

import re
from collections import Counter
from pathlib import Path

import pytest

from atoll.servers.feedback.records import Rating
from atoll.servers.feedback.reviews import (
    BATCH_BYTES,
    BATCH_RECORDS,
    COUNT,
    MissingReviews,
    locate,
    read,
    submissions,
)
from atoll.servers.feedback.server import Settings
from atoll.servers.feedback.validation import Bounds, Rules
from atoll.servers.storage.interface import BlobRef
from atoll.servers.storage.pack import LARGEST


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return locate()
    except MissingReviews as missing:
        pytest.skip(str(missing))


def test_every_review_becomes_one_valid_rating(path: Path) -> None:
    settings = Settings()
    bounds = Bounds(
        settings.batch_records, settings.inline_bytes, settings.batch_bytes, settings.batch_groups
    )
    rules = Rules(settings.roles, bounds)
    tasks: Counter[str] = Counter()
    good = 0
    raters: dict[str, float] = {}
    ids: set[str] = set()
    for submission in submissions(path):
        rules.check(submission.batch)
        ids.add(submission.batch.id)
        assert len(submission.texts) == len(submission.batch.records) <= BATCH_RECORDS
        assert sum(map(len, submission.texts)) <= BATCH_BYTES
        assert max(map(len, submission.texts)) <= LARGEST
        for text, record in zip(submission.texts, submission.batch.records, strict=True):
            assert isinstance(record, Rating)
            assert record.text == BlobRef.of(text)
            tasks[record.task] += 1
            good += record.score == 1.0
            assert raters.setdefault(record.rater, record.trust) == record.trust
    assert tasks == {"film-review.imdb": 25_000, "film-review.rotten-tomatoes": 8_530}
    assert tasks.total() == COUNT
    assert good == COUNT // 2
    assert len(raters) == 80
    assert 0.4 <= min(raters.values()) < max(raters.values()) <= 0.95


def test_it_is_read_lazily_and_the_same_each_time(path: Path) -> None:
    first = next(submissions(path))
    assert first == next(submissions(path))
    assert next(read(path)).text.startswith("I rented I AM CURIOUS-YELLOW")


def test_another_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    wrong = tmp_path / "reviews.csv"
    wrong.write_text("a,b\n1,2\n")
    columns = re.escape("expected the columns ['text', 'label', 'source'], got ['a', 'b']")
    with pytest.raises(MissingReviews, match=columns):
        list(read(wrong))
    wrong.write_text("text,label,source\nfine,3,imdb\n")
    label = re.escape("got label '3', source 'imdb'")
    with pytest.raises(MissingReviews, match=f"review 0: expected label 0 or 1 .* {label}"):
        list(read(wrong))
