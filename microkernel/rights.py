"""Rights: names in interfaces, bits in tables. Which bit a name has never changes while a server's
capabilities live.
"""

from collections.abc import Iterable

from atoll.ipc.errors import BadRequest

from .image import DELEGATE

DELEGATE_BIT = 63
"""The one right that every interface has: to grant the capability to another process."""
MOST = 63
"""Rights an interface may name."""

RightsMap = tuple[str, ...]
"""Right names in bit order, bit 0 first; `delegate` is not among them."""


def extend(known: RightsMap, offered: Iterable[str]) -> RightsMap:
    """The map once a version that offers `offered` has been accepted: known names keep their bits, new ones
    follow in the order offered. A name that a version no longer offers keeps its bit, so that a swap back
    finds it. Raises `BadRequest` where 63 do not suffice."""
    new = [name for name in dict.fromkeys(offered) if name not in known and name != DELEGATE]
    extended = (*known, *new)
    if len(extended) > MOST:
        raise BadRequest(
            where="rights of the interface",
            expected=f"at most {MOST} names over all versions",
            got=f"{len(extended)} ({', '.join(extended[MOST:])} beyond)",
        )
    return extended


def mask(names: Iterable[str], rights: RightsMap) -> int:
    """The 64-bit word of a table entry. A name outside the map is a `KeyError`: the tree checks before."""
    bits = {name: bit for bit, name in enumerate(rights)} | {DELEGATE: DELEGATE_BIT}
    word = 0
    for name in names:
        word |= 1 << bits[name]
    return word


def names(word: int, rights: RightsMap) -> frozenset[str]:
    """The names of a word's bits; bits the map does not name are left out."""
    found = {name for bit, name in enumerate(rights) if word >> bit & 1}
    return frozenset(found | {DELEGATE}) if word >> DELEGATE_BIT & 1 else frozenset(found)
