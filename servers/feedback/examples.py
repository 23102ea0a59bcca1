"""Training examples in the terms of TRL's data sets, and what becomes of a record in each of them.

- preference (`prompt`, `chosen`, `rejected`): preferences; corrections, where what was written is chosen over what
  it replaced; pairs of ratings, with their `margin`.
- unpaired preference (`prompt`, `completion`, `label`): ratings, good from a score on; both sides of a preference.
- prompt-completion (`prompt`, `completion`): corrections.

Every example says how far it is trusted and which records it comes from, in columns of our own.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from .interface import Pair, Source, Stored
from .records import Correction, Preference, Rating, Text


class PreferenceExample(Struct, frozen=True):
    prompt: Text
    chosen: Text
    rejected: Text
    trust: float
    sources: tuple[Source, ...]
    margin: float | None = None
    """By how much the one was rated higher, where both were rated."""


class UnpairedExample(Struct, frozen=True):
    prompt: Text
    completion: Text
    label: bool
    trust: float
    sources: tuple[Source, ...]


class CompletionExample(Struct, frozen=True):
    prompt: Text
    completion: Text
    trust: float
    sources: tuple[Source, ...]


Example = PreferenceExample | UnpairedExample | CompletionExample

TEXTS = ("prompt", "chosen", "rejected", "completion")
"""The columns that hold texts, in any type."""


def source(stored: Stored) -> Source:
    return Source(stored.batch, stored.index, stored.record.rater, stored.revision)


def preference(stored: Stored) -> Iterator[PreferenceExample]:
    """None of a rating: it takes two."""
    match stored.record:
        case Preference(prompt=prompt, chosen=chosen, rejected=rejected):
            yield PreferenceExample(prompt, chosen, rejected, stored.trust, (source(stored),))
        case Correction(prompt=prompt, text=text, corrected=corrected):
            yield PreferenceExample(prompt, corrected, text, stored.trust, (source(stored),))


def pair(drawn: Pair) -> PreferenceExample:
    sources = (drawn.chosen_from, drawn.rejected_from)
    return PreferenceExample(drawn.prompt, drawn.chosen, drawn.rejected, drawn.trust, sources, drawn.margin)


def unpaired(stored: Stored, good: float) -> Iterator[UnpairedExample]:
    """A rating of `good` or more is a good completion."""
    if isinstance(stored.record, Rating):
        rated = stored.record
        label = rated.score >= good
        yield UnpairedExample(rated.prompt, rated.text, label, stored.trust, (source(stored),))
    for example in preference(stored):
        yield from sides(example)


def sides(example: PreferenceExample) -> Iterator[UnpairedExample]:
    """A preference as a good completion and a bad one."""
    for completion, label in ((example.chosen, True), (example.rejected, False)):
        yield UnpairedExample(example.prompt, completion, label, example.trust, example.sources)


def completion(stored: Stored) -> Iterator[CompletionExample]:
    if isinstance(stored.record, Correction):
        corrected = stored.record
        yield CompletionExample(corrected.prompt, corrected.corrected, stored.trust, (source(stored),))


def columns(example: Example, texts: dict[Text, str], *, conversational: bool) -> dict[str, Any]:
    """The row: every text looked up in `texts`, as a message of its role where it is `conversational`."""
    row: dict[str, Any] = {}
    for name in example.__struct_fields__:
        value = getattr(example, name)
        if name in TEXTS:
            role = "user" if name == "prompt" else "assistant"
            row[name] = [{"role": role, "content": texts[value]}] if conversational else texts[value]
        elif name == "sources":
            row[name] = [msgspec.structs.asdict(each) for each in value]
        elif value is not None:
            row[name] = value
    return row
