"""Preference pairs out of ratings: which of two answers to one prompt people rated higher.

All pairs of one prompt and different scores are numbered, without being made: sorted by prompt and score, a
rating with `b` ratings of its prompt and lower score before it takes part in `b` pairs as the better one.
Different numbers are drawn below the total and turned back into pairs by bisection. So every pair is equally
likely, none comes twice, and 25,000 ratings (some 150 million pairs) cost memory for the ratings only. The
draw is a hash of seed and counter rather than a library's generator: the same pairs come out on any machine
and any version of Python.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from atoll.servers.storage.interface import BlobRef

from .interface import Pair, Source
from .records import Said


class Rated(NamedTuple):
    """A rating as far as pairs need it."""

    prompt: Said
    score: float
    source: Source
    trust: float
    text: Said


def _prompt(rated: Rated) -> tuple[bool, str | bytes]:
    """Equal for equal prompts, and in an order."""
    prompt = rated.prompt
    return (True, prompt.hash) if isinstance(prompt, BlobRef) else (False, prompt)


def _place(rated: Rated) -> tuple[tuple[bool, str | bytes], float, str, int]:
    """Where a rating stands among the others, whatever the order in which they came."""
    return _prompt(rated), rated.score, rated.source.batch, rated.source.index


class Pairs:
    """The pairs of a fixed set of ratings."""

    def __init__(self, ratings: list[Rated]) -> None:
        self._ratings = sorted(ratings, key=_place)
        self._first: list[int] = []
        """For each rating, where those of its prompt begin."""
        self._below: list[int] = []
        """For each rating, how many of its prompt have a lower score."""
        for at, rated in enumerate(self._ratings):
            before = self._ratings[at - 1] if at else None
            if before is None or _prompt(before) != _prompt(rated):
                self._first.append(at)
                self._below.append(0)
            else:
                self._first.append(self._first[-1])
                same = before.score == rated.score
                self._below.append(self._below[-1] if same else at - self._first[-1])
        self._ends = list(accumulate(self._below))
        """For each rating, the number of pairs whose better one is it or stands before it."""

    @property
    def total(self) -> int:
        return self._ends[-1] if self._ends else 0

    def numbered(self, number: int) -> tuple[Rated, Rated]:
        """The better and the worse rating of pair `number`, 0 <= number < total."""
        better = bisect_right(self._ends, number)
        worse = number - (self._ends[better] - self._below[better])
        return self._ratings[better], self._ratings[self._first[better] + worse]

    def draw(self, seed: int, count: int) -> Iterator[Pair]:
        """`count` pairs, or all there are, in an order that the seed decides."""
        for position, number in enumerate(_different(seed, min(count, self.total), self.total), start=1):
            better, worse = self.numbered(number)
            yield Pair(
                position,
                better.prompt,
                better.text,
                worse.text,
                better.score - worse.score,
                min(better.trust, worse.trust),
                better.source,
                worse.source,
            )


def _number(seed: int, counter: int, below: int) -> int:
    """Uniform below `below`: 128 bits of a hash, so the bias is less than one in 2**64 for any set that
    fits a machine.
    """
    data = f"{seed}:{counter}".encode()
    return (
        int.from_bytes(hashlib.blake2b(data, digest_size=16, person=b"atoll.pairs").digest(), "little")
        % below
    )


def _different(seed: int, count: int, total: int) -> Iterator[int]:
    """`count` different numbers below `total`: a shuffle of Fisher and Yates that remembers only what it
    moved.
    """
    moved: dict[int, int] = {}
    for counter in range(count):
        last = total - 1 - counter
        drawn = _number(seed, counter, last + 1)
        yield moved.get(drawn, drawn)
        end = moved.pop(last, last)
        if drawn != last:
            moved[drawn] = end
