"""A tree of seeds that can forget a leaf: the puncturable function of Goldreich, Goldwasser and Micali.

A node's children are HMAC-SHA256 of its seed; a leaf, `DEPTH` levels down, is 32 bytes that look like chance to
whoever has not a seed above it. At first one seed, the root's, gives all leaves. To prune a leaf is to keep, in place
of the seed above it, those of the siblings of each node on the way down: they give every other leaf, and never that one.

Invariant: the nodes whose seeds are kept are disjoint, and cover all leaves but those that were pruned.
"""

import hmac
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final

DEPTH: Final = 64
"""Of two subjects among a million, that they have one leaf, and are purged together, has a chance of 3 in 10^8."""
SEED: Final = 32

Kept = tuple[int, int, bytes]
"""A node whose seed is kept: its depth, the first bits of all leaves below it, the seed."""


def child(seed: bytes, bit: int) -> bytes:
    return hmac.digest(seed, bytes((bit,)), sha256)


class Tree:
    def __init__(self, kept: Iterable[Kept]) -> None:
        self._seeds = {(depth, prefix): seed for depth, prefix, seed in kept}

    def kept(self) -> Iterator[Kept]:
        for (depth, prefix), seed in self._seeds.items():
            yield depth, prefix, seed

    def leaf(self, place: int) -> bytes | None:
        """The leaf at a place of 64 bits; None if it was pruned."""
        found = self._above(place)
        if found is None:
            return None
        depth, seed = found
        for bit in _way(place, depth):
            seed = child(seed, bit)
        return seed

    def prune(self, place: int) -> bool:
        """Forget a leaf. False: it was pruned before."""
        found = self._above(place)
        if found is None:
            return False
        depth, seed = found
        del self._seeds[depth, _prefix(place, depth)]
        for level, bit in enumerate(_way(place, depth), depth + 1):
            self._seeds[level, _prefix(place, level) ^ 1] = child(seed, 1 - bit)
            seed = child(seed, bit)
        return True

    def _above(self, place: int) -> tuple[int, bytes] | None:
        """The kept node above a leaf: its depth and seed."""
        for depth in range(DEPTH + 1):
            seed = self._seeds.get((depth, _prefix(place, depth)))
            if seed is not None:
                return depth, seed
        return None


def _prefix(place: int, depth: int) -> int:
    return place >> (DEPTH - depth)


def _way(place: int, depth: int) -> Iterator[int]:
    """Left or right at each node from that depth down."""
    return (place >> (DEPTH - level - 1) & 1 for level in range(depth, DEPTH))
