"""Training sets out of a node, as rows that a trainer takes: a client like any other.

    with atoll.connect() as node:
        data = datasets.of(node)
        for row in data.preferences("summary", min_trust=0.5):
            print(row["prompt"], row["chosen"], row["rejected"], row["sources"])

Rows are plain dicts with TRL's columns, in an order that the moment decides; they come as they are read, and
memory follows none of: records, texts, size of the set. The moment is fixed when the iterator is made
(`as_of`), so what is submitted or taken back while it is read changes nothing. What was trained on a set names its
moment for as long as it lives: `keep` holds it where the image gives up the past. A purge does: examples with texts of
whoever was purged are left out of the sets of every moment, and counted (`Rows.purged`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from atoll.ipc.attach import Node
from atoll.ipc.system.state import AsOf
from atoll.servers.storage.interface import BlobRef, Storage

from . import examples
from .examples import Example
from .interface import Feedback, Kept, Stored
from .records import Text

Row = dict[str, Any]

GOOD = 0.5
"""The least score of a good completion."""
SMALL = 64 * 1024
"""Bytes of the largest text that storage gives together with others."""
_TOGETHER = 256 * 1024
"""Bytes of texts that are read by one call; a larger text is read by itself, as a stream."""
_ROWS = 128
"""Examples that are held while their texts are read."""


class Rows(Iterator[Row]):
    """Rows as they are read."""

    def __init__(self, found: Iterable[Example], told: Callable[[list[Example]], Iterator[Row]]) -> None:
        self.purged = 0
        """Examples that were left out so far, since their texts were purged."""
        self._rows = chain.from_iterable(map(told, _in_parts(self._left(found))))

    def __next__(self) -> Row:
        return next(self._rows)

    def _left(self, found: Iterable[Example]) -> Iterator[Example]:
        for example in found:
            if None in _texts(example):
                self.purged += 1
            else:
                yield example


def of(node: Node) -> "Datasets":
    """The sets of a node that this program is attached to."""
    return Datasets(node.open("feedback", Feedback), node.open("storage", Storage))


class Datasets:
    def __init__(self, feedback: Feedback, storage: Storage) -> None:
        self._feedback = feedback
        self._storage = storage

    def moment(self, as_of: AsOf = None) -> int:
        """The revision that a moment means, to be written beside what was trained on it."""
        if as_of is None:
            return self._feedback.head.now()
        return self._feedback.revision_at.now(as_of) if isinstance(as_of, float) else as_of

    def keep(self, name: str, as_of: AsOf = None, why: str = "") -> int:
        """The revision of a moment, whose sets are held from now on under a name, that of what is trained on them for
        instance. Repeated with nothing else it gives the revision that the name has."""
        return self._feedback.keep.now(name, as_of, why).revision

    def let_go(self, name: str) -> None:
        """What only that name held is given up in time, if the image's retention says so."""
        self._feedback.let_go.now(name)

    def kept(self) -> list[Kept]:
        """What is held, by name."""
        return self._feedback.kept.now()

    def preferences(
        self, task: str, as_of: AsOf = None, min_trust: float = 0.0, *, conversational: bool = False
    ) -> Rows:
        """`prompt`, `chosen`, `rejected`: what raters preferred, and what they corrected."""
        return self._rows(task, as_of, min_trust, examples.preference, conversational)

    def pairs(
        self,
        task: str,
        count: int,
        seed: int = 0,
        as_of: AsOf = None,
        min_trust: float = 0.0,
        *,
        conversational: bool = False,
    ) -> Rows:
        """`prompt`, `chosen`, `rejected`, `margin`: drawn from the ratings of one prompt, see `draw_pairs`."""
        drawn = self._feedback.draw_pairs.now(task, seed, count, self.moment(as_of), min_trust)
        return self._told(map(examples.pair, drawn), conversational)

    def unpaired(
        self,
        task: str,
        as_of: AsOf = None,
        min_trust: float = 0.0,
        *,
        good: float = GOOD,
        conversational: bool = False,
    ) -> Rows:
        """`prompt`, `completion`, `label`: ratings, good from that score on, and both sides of preferences."""
        return self._rows(task, as_of, min_trust, partial(examples.unpaired, good=good), conversational)

    def completions(
        self, task: str, as_of: AsOf = None, min_trust: float = 0.0, *, conversational: bool = False
    ) -> Rows:
        """`prompt`, `completion`: what raters wrote in place of another text."""
        return self._rows(task, as_of, min_trust, examples.completion, conversational)

    def _rows(
        self,
        task: str,
        as_of: AsOf,
        min_trust: float,
        made: Callable[[Stored], Iterable[Example]],
        conversational: bool,
    ) -> Rows:
        stored = self._feedback.training_set.now(task, self.moment(as_of), min_trust)
        return self._told(chain.from_iterable(map(made, stored)), conversational)

    def _told(self, found: Iterable[Example], conversational: bool) -> Rows:
        """Rows with their texts, read for a few examples at a time."""

        def told(few: list[Example]) -> Iterator[Row]:
            texts = self._read({text for example in few for text in _texts(example)})
            return (examples.columns(each, texts, conversational=conversational) for each in few)

        return Rows(found, told)

    def _read(self, wanted: set[Text]) -> dict[Text, str]:
        """Each text as it reads. Bytes in storage that are no UTF-8 read as U+FFFD."""
        texts: dict[Text, str] = {text: text for text in wanted if isinstance(text, str)}
        small: list[BlobRef] = []
        for ref in sorted((text for text in wanted if isinstance(text, BlobRef)), key=lambda ref: ref.hash):
            if ref.size > SMALL:
                content = b"".join(piece.data for piece in self._storage.get.now(ref.hash))
                texts[ref] = content.decode(errors="replace")
            else:
                small.append(ref)
        contents = self._storage.get_many.now([ref.hash for ref in small]) if small else []
        return texts | {ref: each.decode(errors="replace") for ref, each in zip(small, contents, strict=True)}


def _texts(example: Example) -> Iterator[Text]:
    return (getattr(example, name) for name in examples.TEXTS if hasattr(example, name))


def _in_parts(found: Iterable[Example]) -> Iterator[list[Example]]:
    """A few examples at a time, so that their small texts fit one reply."""
    part: list[Example] = []
    size = 0
    for example in found:
        small = [text.size for text in _texts(example) if isinstance(text, BlobRef) and text.size <= SMALL]
        if part and (size + sum(small) > _TOGETHER or len(part) == _ROWS):
            yield part
            part, size = [], 0
        part.append(example)
        size += sum(small)
    if part:
        yield part
