"""How feedback lies in the store, and why so.

    batch/<id>                                  Head: what the batch is, and the keys of its segments
    task/<task>                                 Known: this task has been seen
    rater/<name>                                Appointed: what is thought of a rater
    rater                                       Appointments: written with each of those rows
    set/<task>/<kind>/<band>/<id>/<number>      Segment: records of a batch of that task, kind, band of trust,
                                                without the words of raters (words.py)

The data lies at the key by which training reads it, so it is its own index by task, kind and trust; by
batch, the head names its segments. A batch of 500 ratings of one task by raters of three trusts is 4 rows
(a head, three segments), not 500 or 2,000, which is what decides how fast a batch commits: the store
writes each row three times (row, history, revision). What is left without an index of its own, "all
records of a kind" whatever the task, is a range a known task. A roll-back deletes the segments and
rewrites the head in one transaction; history keeps both for reads as of earlier. Names hold no `/`
(validation.py), so no key is the prefix of another's parts.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from atoll.ipc.errors import BadRequest

from .interface import Batch, BatchInfo, Group, Rater, Selection
from .records import BANDS, KINDS, Kind, Record, band, kind_of, lowest_band

SEGMENT_RECORDS = 512
"""Records in a segment at most: about 70 KiB with blob references; inline texts count by `SEGMENT_BYTES`."""
SEGMENT_BYTES = 128 * 1024


class Head(Struct, frozen=True, array_like=True, tag=1):
    info: BatchInfo
    digest: bytes
    """Of the records: tells a repeated submission from another batch under the same id."""
    segments: list[str]
    words: list[int] = []
    """For each segment, how many rows of words go with it; empty: none with any."""


class Known(Struct, frozen=True, array_like=True, tag=2):
    """A task that has been seen. It stays when all its batches are taken back."""


class Segment(Struct, frozen=True, array_like=True, tag=3):
    """Parallel lists: each record and its number in the batch."""

    batch: str
    indexes: list[int]
    records: list[Record]


class Appointed(Struct, frozen=True, array_like=True, tag=4):
    rater: Rater


class Appointments(Struct, frozen=True, array_like=True, tag=5):
    """At whose revision the last rater was appointed: who expects that expects that nobody was appointed since."""


Row = Head | Known | Segment | Appointed | Appointments

RATERS = "rater"
"""What the keys of appointments begin with, and the key of the row that is written with each."""

_encode = msgspec.msgpack.Encoder().encode


def digest(batch: Batch) -> bytes:
    """Equal for equal records in equal order."""
    return hashlib.blake2b(_encode(batch.records), digest_size=16).digest()


def head_key(batch: str) -> str:
    return f"batch/{batch}"


def task_key(task: str) -> str:
    return f"task/{task}"


def rater_key(rater: str) -> str:
    return f"rater/{rater}"


def set_prefix(task: str, kind: Kind | None = None, trust: int | None = None) -> str:
    if kind is None:
        return f"set/{task}/"
    return f"set/{task}/{kind}/" if trust is None else f"set/{task}/{kind}/{trust}/"


def split(batch: Batch) -> tuple[list[Group], dict[str, Segment]]:
    """The batch's groups and its segments by key, words and all. Precondition: it passed `Rules.check`."""
    groups: dict[tuple[str, Kind, int], list[int]] = {}
    for index, record in enumerate(batch.records):
        groups.setdefault((record.task, kind_of(record), band(record.trust)), []).append(index)
    segments: dict[str, Segment] = {}
    for (task, kind, trust), members in groups.items():
        for number, part in enumerate(_parts(batch, members)):
            key = f"{set_prefix(task, kind, trust)}{batch.id}/{number:04d}"
            segments[key] = Segment(batch.id, part, [batch.records[index] for index in part])
    return [Group(*group, len(members)) for group, members in groups.items()], segments


def _parts(batch: Batch, members: list[int]) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for index in members:
        length = len(_encode(batch.records[index]))
        if part and (len(part) == SEGMENT_RECORDS or size + length > SEGMENT_BYTES):
            yield part
            part, size = [], 0
        part.append(index)
        size += length
    yield part


def prefixes(selection: Selection, tasks: Iterable[str]) -> Iterator[str]:
    """The ranges that hold all segments a selection may mean, in key order. `tasks`: those known, sorted."""
    wanted = [selection.task] if selection.task else tasks
    lowest = lowest_band(selection.min_trust)
    for task in wanted:
        if not selection.kind and not lowest:
            yield set_prefix(task)
            continue
        for kind in sorted(KINDS):
            if selection.kind in ("", kind):
                if not lowest:
                    yield set_prefix(task, kind)
                else:
                    yield from (set_prefix(task, kind, trust) for trust in range(lowest, BANDS))


def check_selection(where: str, selection: Selection) -> None:
    """Raises BadRequest for a trust that is none: it would select nothing, or everything."""
    if not (math.isfinite(selection.min_trust) and 0.0 <= selection.min_trust <= 1.0):
        raise BadRequest(where, "a trust from 0 to 1", repr(selection.min_trust))


def trusted(record: Record, most: Mapping[str, float]) -> float:
    """What a record counts for: its own trust, or the most that its rater's may be where that is less."""
    return min(record.trust, most.get(record.rater, 1.0))


def fits(selection: Selection, record: Record, trust: float) -> bool:
    """`trust`: what the record counts for. It never exceeds the record's own, by whose band it is found."""
    return (
        trust >= selection.min_trust
        and selection.task in ("", record.task)
        and selection.kind in ("", kind_of(record))
    )


def may_fit(selection: Selection, info: BatchInfo) -> bool:
    """Whether the batch has a group that fits; the trust is compared by bands."""
    lowest = lowest_band(selection.min_trust)
    return selection.batch in ("", info.id) and any(
        selection.task in ("", group.task) and selection.kind in ("", group.kind) and group.band >= lowest
        for group in info.groups
    )
