"""Names: their numbers on the wire, and what may have been meant by one that there is not.

Names become numbers by a hash, so that no registry of numbers is needed and a renamed thing is another thing.
"""

import difflib
from collections.abc import Iterable
from hashlib import blake2b

NAMES_SHOWN = 12
"""Names that a hint lists at most."""


def number_of(name: str) -> int:
    """The 32-bit number of a method or a failure: the first four bytes, little-endian, of its name's
    BLAKE2b."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")


def badge_number(name: str) -> int:
    """The badge that stands for a name in an image: 63 bits of its hash, never 0."""
    return (int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1) or 1


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that resembles this one most; empty if none does."""
    near = difflib.get_close_matches(name, list(known), 1)
    return near[0] if near else ""


def some_of(known: Iterable[str]) -> tuple[str, ...]:
    """As many as `hint` needs to know of: those it lists, and one by which it sees that there are more."""
    return tuple(sorted(known)[: NAMES_SHOWN + 1])


def hint(near: str, some: tuple[str, ...] = ()) -> str:
    """The nearest name, or else some of those that there are, as the end of a sentence; empty if there is neither."""
    if near:
        return f"did you mean {near!r}?"
    more = ", ..." if len(some) > NAMES_SHOWN else ""
    return f"choose one of {', '.join(some[:NAMES_SHOWN])}{more}" if some else ""
