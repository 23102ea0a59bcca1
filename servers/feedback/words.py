"""What raters wrote themselves, apart from the rest of their records, where it can be forgotten.

A segment in the store has None where a record has a text of its own; the texts are rows of a private keyspace, one a
rater and segment, sealed under the rater's data key:

    <key of the segment>/<number>               Words: of the rater who is the number-th to have a text there

So what is counted, indexed and traced lies as it did, and a purge of a rater leaves all of it but the words. Their
texts then read None, which is what the segment says anyway. References to blobs and empty prompts are nobody's words
and stay where they are: a segment without words has no such row.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct, structs

from atoll.ipc.keyspace import Row

from .records import Record, is_purged, texts, words_of
from .rows import Head, Segment


class Words(Struct, frozen=True, array_like=True):
    """What one rater wrote in one segment, in the order of its records and their fields."""

    rater: str
    texts: list[str]

    @property
    def subject(self) -> str:
        return self.rater


class Opened(NamedTuple):
    """A segment with the words that are left."""

    segment: Segment
    purged: int
    """Records that lack texts, since their raters were purged."""
    wrong: list[str]
    """Keys where the words are not what the segment says: never, unless the store was damaged."""


def bounds(segment: str) -> tuple[str, str]:
    """Of the range where a segment's words lie."""
    return f"{segment}/", f"{segment}0"


def _key(segment: str, number: int) -> str:
    return f"{segment}/{number:04d}"


def segment_of(key: str) -> str:
    """Whose words lie at a key."""
    return key.rpartition("/")[0]


def keys(segment: str, held: Segment) -> dict[str, str]:
    """By rater, where the words lie that the segment leaves out."""
    raters = dict.fromkeys(record.rater for record in held.records if is_purged(record))
    return {rater: _key(segment, number) for number, rater in enumerate(raters)}


def keys_of_batch(head: Head) -> Iterator[str]:
    """Where all words of a batch lie."""
    for segment, count in zip(head.segments, head.words, strict=bool(head.words)):
        yield from (_key(segment, number) for number in range(count))


def apart(segment: str, whole: Segment) -> tuple[Segment, dict[str, Words]]:
    """A segment as it lies in the store, and its words by key."""
    said: dict[str, list[str]] = {}
    records: list[Record] = []
    for record in whole.records:
        own = words_of(record)
        if own:
            said.setdefault(record.rater, []).extend(own.values())
        records.append(structs.replace(record, **dict.fromkeys(own)) if own else record)
    held = structs.replace(whole, records=records)
    return held, {key: Words(rater, said[rater]) for rater, key in keys(segment, held).items()}


def together(segment: str, held: Segment, rows: Mapping[str, Row[Words]]) -> Opened:
    """A segment as its readers see it. `rows`: what lies in its `bounds`."""
    said: dict[str, Iterator[str]] = {}
    wanted, places = _texts_left_out(held), keys(segment, held)
    wrong = sorted(rows.keys() - set(places.values()))
    for rater, key in places.items():
        row = rows.get(key)
        words = row.value if row else None
        if words is not None and words.rater == rater and len(words.texts) == wanted[rater]:
            said[rater] = iter(words.texts)
        elif row is None or not row.purged:
            wrong.append(key)
    records = [_restored(record, said.get(record.rater)) for record in held.records]
    left = sum(map(is_purged, records)) if len(said) < len(wanted) else 0
    return Opened(structs.replace(held, records=records), left, wrong)


def _texts_left_out(held: Segment) -> dict[str, int]:
    count: dict[str, int] = {}
    for record in held.records:
        missing = sum(text is None for _, text in texts(record))
        if missing:
            count[record.rater] = count.get(record.rater, 0) + missing
    return count


def _restored(record: Record, said: Iterator[str] | None) -> Record:
    missing = [name for name, text in texts(record) if text is None]
    if said is None or not missing:
        return record
    return structs.replace(record, **{name: next(said) for name in missing})
