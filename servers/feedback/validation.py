"""The checks that a batch must pass before anything is stored; each refusal says expected, got, and at
which path.

Types are checked where the call is decoded. What is here depends on values: names, ranges, and how far a
role is trusted.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from atoll.servers.storage.interface import HASH_BYTES, BlobRef

from .interface import Batch, Invalid, Rater
from .records import Correction, Preference, Rating, Record, Text, band, kind_of, texts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_NAME_RULE = "a name (a letter or digit, then letters, digits and `._:-`, 64 characters at most)"
_NOTE_BYTES = 1000
_NOTE_RULE = f"a line or a few of {_NOTE_BYTES} bytes at most, without control characters"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_note(field: str, note: str) -> None:
    """Notes and reasons are shown in lists and terminals, so they are short and plain. Raises Invalid."""
    if len(note.encode()) > _NOTE_BYTES:
        raise Invalid(index=-1, field=field, expected=_NOTE_RULE, got=f"{len(note.encode())} bytes")
    if control := _CONTROL.search(note):
        raise Invalid(index=-1, field=field, expected=_NOTE_RULE, got=f"{control[0]!r} at {control.start()}")


def check_rater(rater: Rater) -> None:
    """Raises Invalid."""
    if not _NAME.fullmatch(rater.name):
        raise Invalid(index=-1, field="rater.name", expected=_NAME_RULE, got=_shown(rater.name))
    if not 0.0 <= rater.trust <= 1.0:
        raise Invalid(index=-1, field="rater.trust", expected="a trust from 0 to 1", got=_shown(rater.trust))
    if rater.badge < 0:
        expected = "a badge, or 0 for anybody's"
        raise Invalid(index=-1, field="rater.badge", expected=expected, got=_shown(rater.badge))
    check_note("rater.note", rater.note)


class Bounds(NamedTuple):
    """Of a batch. `inline` and `total` are bytes of UTF-8: of one text, and of all texts of the batch."""

    records: int
    inline: int
    total: int
    groups: int
    """Of records that share task, kind and tenth of trust; each is a line in every list of batches."""


class Rules:
    """`roles` maps each role to the highest trust that a record of it may claim."""

    def __init__(self, roles: Mapping[str, float], bounds: Bounds) -> None:
        self._roles = dict(roles)
        self._bounds = bounds

    def check(self, batch: Batch) -> None:
        """Raises Invalid for the first thing that is wrong."""
        if not _NAME.fullmatch(batch.id):
            raise Invalid(index=-1, field="id", expected=_NAME_RULE, got=_shown(batch.id))
        check_note("note", batch.note)
        if not 1 <= len(batch.records) <= self._bounds.records:
            expected = f"1 to {self._bounds.records} records in a batch"
            raise _wrong_records(expected, f"{len(batch.records)} records")
        for index, record in enumerate(batch.records):
            self._check_record(index, record)
        inline = (text for record in batch.records for _, text in texts(record) if isinstance(text, str))
        size = sum(len(text.encode()) for text in inline)
        if size > self._bounds.total:
            expected = (
                f"at most {self._bounds.total} bytes of inline text in a batch (put texts into storage)"
            )
            raise _wrong_records(expected, f"{size} bytes")
        groups = {(record.task, kind_of(record), band(record.trust)) for record in batch.records}
        if len(groups) > self._bounds.groups:
            expected = f"at most {self._bounds.groups} groups of one task, kind and tenth of trust in a batch"
            raise _wrong_records(expected, f"{len(groups)} groups")

    def _check_record(self, index: int, record: Record) -> None:
        for field in ("task", "rater"):
            value = getattr(record, field)
            if not _NAME.fullmatch(value):
                raise Invalid(index=index, field=field, expected=_NAME_RULE, got=_shown(value))
        highest = self._roles.get(record.role)
        if highest is None:
            expected = "a role of this node (" + ", ".join(sorted(self._roles)) + ")"
            raise Invalid(index=index, field="role", expected=expected, got=_shown(record.role))
        if not 0.0 <= record.trust <= highest:
            expected = f"a trust from 0 to {highest:g}, the most that the role {record.role!r} is given"
            raise Invalid(index=index, field="trust", expected=expected, got=_shown(record.trust))
        for field, text in texts(record):
            self._check_text(index, field, text)
        match record:
            case Rating(score=score) if not (math.isfinite(score) and 0.0 <= score <= 1.0):
                raise Invalid(index=index, field="score", expected="a score from 0 to 1", got=_shown(score))
            case Preference(chosen=chosen, rejected=rejected) if chosen == rejected:
                expected = "another text than `chosen`"
                raise Invalid(index=index, field="rejected", expected=expected, got="the same text")
            case Correction(text=text, corrected=corrected) if text == corrected:
                raise Invalid(
                    index=index, field="corrected", expected="another text than `text`", got="the same text"
                )

    def _check_text(self, index: int, field: str, text: Text) -> None:
        if isinstance(text, BlobRef):
            if len(text.hash) != HASH_BYTES or text.size < 0:
                expected = f"a blob reference with a hash of {HASH_BYTES} bytes and a size"
                raise Invalid(index=index, field=field, expected=expected, got=_shown(text))
        elif text is None:
            raise Invalid(index=index, field=field, expected="a text", got="null")
        elif not text and field != "prompt":
            raise Invalid(index=index, field=field, expected="a text", got="an empty one")
        elif len(text) > self._bounds.inline or len(text.encode()) > self._bounds.inline:
            most = self._bounds.inline
            expected = f"at most {most} bytes inline (put a longer text into storage and give its reference)"
            raise Invalid(index=index, field=field, expected=expected, got=f"{len(text.encode())} bytes")


def _wrong_records(expected: str, got: str) -> Invalid:
    """The records as a whole are wrong, not one of them."""
    return Invalid(index=-1, field="records", expected=expected, got=got)
