"""Files of batches for tests."""

from collections.abc import Iterable

import msgspec

from atoll.servers.feedback.interface import Batch, Feedback
from atoll.servers.feedback.records import Rating, Record
from atoll.servers.storage.interface import BlobRef, Storage

TASK = "film"


def batch(id: str, records: int = 3) -> Batch:
    return Batch(
        id,
        [
            Rating(
                rater=f"r-{number % 2}",
                role="expert",
                trust=0.5,
                task=TASK,
                text=f"{id} {number}",
                score=0.25,
            )
            for number in range(records)
        ],
    )


def batches(count: int) -> list[Batch]:
    """Of different sizes."""
    return [batch(f"b-{number:03d}", 1 + number % 3) for number in range(count)]


def line(batch: Batch) -> bytes:
    return msgspec.json.encode(batch)


def put(storage: Storage, lines: Iterable[Batch | bytes]) -> BlobRef:
    """A file of these, in storage."""
    written = (line(each) if isinstance(each, Batch) else each for each in lines)
    return storage.put.now([each + b"\n" for each in written])


def held(feedback: Feedback) -> dict[str, list[Record]]:
    """What stands in feedback, by batch; what it says of itself is so."""
    found: dict[str, list[Record]] = {}
    for stored in feedback.records.now():
        found.setdefault(stored.batch, []).append(stored.record)
    told = feedback.check.now()
    assert (told.problems, told.stray) == ([], [])
    return found


def said(batches: Iterable[Batch]) -> dict[str, list[Record]]:
    return {each.id: each.records for each in batches}
