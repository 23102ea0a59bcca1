"""What a person said, as typed records.

Names follow TRL's data set columns (`prompt`, `chosen`, `rejected`). A text is given inline when it is
short, or as a reference to a blob that was put into storage before. Encoded, a rating with a
blob reference is a map of about 145 bytes: names cost some of it, and buy errors that name the field, JSON
that a person can write, and room for fields to come.
"""

from typing import Literal, NamedTuple

from msgspec import Struct

from atoll.servers.storage.interface import BlobRef

Said = str | BlobRef
Text = Said | None
"""None, only in what is read: it was purged, with all that its rater had written."""
Kind = Literal["preference", "rating", "correction"]
KINDS: tuple[Kind, ...] = ("preference", "rating", "correction")


class Preference(Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="preference"):
    """Of two answers to one prompt, the rater prefers `chosen`."""

    rater: str
    role: str
    trust: float
    task: str
    chosen: Text
    rejected: Text
    prompt: Text = ""


class Rating(Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="rating"):
    """How good the rater finds `text`, from 0 (worst) to 1 (best)."""

    rater: str
    role: str
    trust: float
    task: str
    text: Text
    score: float
    prompt: Text = ""


class Correction(Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="correction"):
    """What the rater wrote in place of `text`."""

    rater: str
    role: str
    trust: float
    task: str
    text: Text
    corrected: Text
    prompt: Text = ""


Record = Preference | Rating | Correction

_KIND_OF: dict[type[Struct], Kind] = {Preference: "preference", Rating: "rating", Correction: "correction"}


def kind_of(record: Record) -> Kind:
    return _KIND_OF[type(record)]


def texts(record: Record) -> tuple[tuple[str, Text], ...]:
    """The record's texts with the names of their fields."""
    match record:
        case Preference():
            return (("chosen", record.chosen), ("rejected", record.rejected), ("prompt", record.prompt))
        case Rating():
            return (("text", record.text), ("prompt", record.prompt))
        case Correction():
            return (("text", record.text), ("corrected", record.corrected), ("prompt", record.prompt))


def is_purged(record: Record) -> bool:
    """Whether a text of it cannot be read any more."""
    return any(text is None for _, text in texts(record))


def words_of(record: Record) -> dict[str, str]:
    """Its texts that the rater wrote, or was shown, by the names of their fields: all but references and empty ones."""
    return {name: text for name, text in texts(record) if isinstance(text, str) and text}


class Mention(NamedTuple):
    """Where a record refers to a blob."""

    record: int
    field: str
    ref: BlobRef


def blobs(records: list[Record]) -> list[Mention]:
    """Each blob that the records refer to, once for each size that they say, by its first mention."""
    found: dict[BlobRef, Mention] = {}
    for index, record in enumerate(records):
        for field, text in texts(record):
            if isinstance(text, BlobRef) and text not in found:
                found[text] = Mention(index, field, text)
    return list(found.values())


BANDS = 10


def band(trust: float) -> int:
    """The tenth of the trust scale that `trust` lies in, 0 to 9; rows are grouped by it."""
    return min(BANDS - 1, int(trust * BANDS))


def lowest_band(min_trust: float) -> int:
    """The first band that may hold a record of at least `min_trust`."""
    return band(min_trust)
