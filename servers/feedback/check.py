"""Proof that what feedback promises of its rows is so: each record is found by its batch and by its task, kind
and trust, once; a batch that was taken back has nothing left; no text that a row names may be collected.

`check_batch` looks from the heads to the segments, `Seen` from the segments to the heads; the server reads
the rows for both as of one revision.
"""

from collections import Counter
from collections.abc import Awaitable, Callable

from .interface import Batch, Group
from .records import band, blobs, kind_of
from .rows import Head, Segment, set_prefix, split
from .words import Opened

_MOST = 100

Marked = tuple[bytes, ...]
"""Hashes of which a batch has one."""


class Sentences:
    """What was found, the first hundred and how many more."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._further = 0

    def add(self, *sentences: str) -> None:
        for sentence in sentences:
            if len(self._told) < _MOST:
                self._told.append(sentence)
            else:
                self._further += 1

    def all(self) -> list[str]:
        return [*self._told, *([f"and {self._further} more"] if self._further else [])]


def reference_name(batch: str, mark: bytes) -> str:
    """Under which a batch's texts are referred to in storage."""
    return f"{batch}/{mark.hex()}"


async def check_batch(
    head: Head,
    segments: dict[str, Opened | None],
    tasks: set[str],
    kept: set[str],
    marks: Callable[[Batch], Awaitable[Marked]],
) -> list[str]:
    """Sentences about one stored batch: `segments` are the rows that its head names, None where there is
    none; `tasks` those known; `kept` the names of references in storage; `marks` gives what hashes records may have.
    """
    id = head.info.id
    lost = [key for key, segment in segments.items() if segment is None]
    if lost:
        return [f"batch {id}: its head names {key}, and there is no such row" for key in lost]
    parts = [opened.segment for opened in segments.values() if opened]
    records = {
        index: record for part in parts for index, record in zip(part.indexes, part.records, strict=True)
    }
    counted = sum(len(part.indexes) for part in parts)
    if sorted(records) != list(range(head.info.records)) or counted != head.info.records:
        return [f"batch {id}: its segments hold {counted} records, and its head says {head.info.records}"]
    wrong = [key for segment in segments.values() if segment for key in segment.wrong]
    if wrong:
        return [f"batch {id}: the words at {wrong[0]} are not what was submitted"]
    ordered = [records[index] for index in range(head.info.records)]
    batch = Batch(id, ordered)
    whole = not any(opened.purged for opened in segments.values() if opened)
    if whole and head.digest not in await marks(batch):
        return [f"batch {id}: its records are not those that were submitted"]
    found: list[str] = []
    groups, expected = split(batch)
    stored = {key: opened.segment for key, opened in segments.items() if opened}
    # How records part into segments depends on their texts.
    placed = stored == expected if whole else all(map(_placed, stored, stored.values()))
    if _counts(groups) != _counts(head.info.groups):
        found.append(f"batch {id}: its head counts other groups than its records make")
    if not placed:
        found.append(f"batch {id}: a record lies under another task, kind or trust than its own")
    found += [
        f"batch {id}: its task {task} is not among those known"
        for task in sorted({group.task for group in groups} - tasks)
    ]
    if blobs(ordered) and reference_name(id, head.digest) not in kept:
        found.append(f"batch {id}: nothing in storage refers to its texts, so they may be collected")
    return found


def _placed(key: str, segment: Segment) -> bool:
    return all(
        key.startswith(f"{set_prefix(record.task, kind_of(record), band(record.trust))}{segment.batch}/")
        for record in segment.records
    )


def _counts(groups: list[Group]) -> Counter[tuple[str, str, int]]:
    return Counter({(group.task, group.kind, group.band): group.records for group in groups})
