"""Preference pairs out of ratings: which of two texts of one task people rated higher.

All pairs of different scores are numbered, without being made: sorted by score, a rating with `b` ratings
of lower score before its group takes part in `b` pairs as the better one. Different numbers are drawn
below the total and turned back into pairs by bisection. So every pair is equally likely, none comes
twice, and 25,000 ratings (some 150 million pairs) cost memory for the ratings only. The draw is a hash of
seed and counter rather than a library's generator: the same pairs come out on any machine and any version
of Python.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from .interface import Pair
from .records import Text


class Rated(NamedTuple):
    """A rating as far as pairs need it; tuples order by score, then by where they came from."""

    score: float
    batch: str
    place: int
    trust: float
    text: Text


class Pairs:
    """The pairs of a fixed set of ratings."""

    def __init__(self, ratings: list[Rated]) -> None:
        self._ratings = sorted(ratings, key=lambda rated: (rated.score, rated.batch, rated.place))
        self._below: list[int] = []
        """For each rating, how many have a lower score."""
        for at, rated in enumerate(self._ratings):
            same = at > 0 and self._ratings[at - 1].score == rated.score
            self._below.append(self._below[-1] if same else at)
        self._ends = list(accumulate(self._below))
        """For each rating, the number of pairs whose better one is it or stands before it."""

    @property
    def total(self) -> int:
        return self._ends[-1] if self._ends else 0

    def numbered(self, number: int) -> tuple[Rated, Rated]:
        """The better and the worse rating of pair `number`, 0 <= number < total."""
        better = bisect_right(self._ends, number)
        first = self._ends[better] - self._below[better]
        return self._ratings[better], self._ratings[number - first]

    def draw(self, seed: int, count: int) -> Iterator[Pair]:
        """`count` pairs, or all there are, in an order that the seed decides."""
        for position, number in enumerate(_different(seed, min(count, self.total), self.total), start=1):
            better, worse = self.numbered(number)
            yield Pair(
                position,
                better.text,
                worse.text,
                better.score - worse.score,
                min(better.trust, worse.trust),
                (better.batch, better.place),
                (worse.batch, worse.place),
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
