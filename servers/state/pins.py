"""Pins: moments that someone wants kept, with who and why. Rows of keyspace 0, with their history.

A pin of a keyspace keeps that keyspace as of one revision; one of keyspace 0, which only the unbadged capability makes,
keeps all of them. It holds what was in force then, not the feed from there on.
"""

from typing import Final

import msgspec

from atoll.ipc.system.state import Pin

from . import layout
from .engine import Snapshot
from .versions import forward

OWN: Final = 0
"""The store's own keyspace, where the rows lie; as a pin's own it stands for all."""
LIMIT: Final = 256
"""Pins of one keyspace at most."""
NAME_LIMIT: Final = 100
"""Characters."""
WHY_LIMIT: Final = 1000
"""Characters. Each look at what is pinned reads them all."""
_START: Final = layout.prefix(OWN) + b"pin/"
SPAN: Final = (_START, layout.prefix(OWN) + b"pin0")
"""Where all pins lie."""

decode: Final = msgspec.msgpack.Decoder(Pin).decode
encode: Final = msgspec.msgpack.Encoder().encode


def key_of(keyspace: int, name: str) -> bytes:
    """The absolute key of a pin's row."""
    return _START + layout.prefix(keyspace) + name.encode()


def of_keyspace(snapshot: Snapshot, keyspace: int, as_of: int = layout.LAST) -> dict[str, Pin]:
    """A keyspace's own pins by name."""
    start = _START + layout.prefix(keyspace)
    return {pin.name: pin for _, pin in _rows(snapshot, start, _after(start), as_of)}


def everything(snapshot: Snapshot) -> list[tuple[int, Pin]]:
    """All pins, each with the number of its keyspace."""
    return _rows(snapshot, *SPAN, layout.LAST)


def all_on(snapshot: Snapshot, keyspace: int, as_of: int = layout.LAST) -> list[Pin]:
    """The pins that keep something of a keyspace: its own, and those on the whole store."""
    found = list(of_keyspace(snapshot, keyspace, as_of).values())
    return found if keyspace == OWN else [*of_keyspace(snapshot, OWN, as_of).values(), *found]


def held(snapshot: Snapshot, keyspace: int) -> tuple[int, ...]:
    """The revisions that are pinned in a keyspace, each once, in order."""
    return tuple(sorted({pin.revision for pin in all_on(snapshot, keyspace)}))


def _rows(snapshot: Snapshot, start: bytes, end: bytes, as_of: int) -> list[tuple[int, Pin]]:
    found = []
    for row, stored in forward(snapshot, start, end, as_of):
        value = layout.value_of(snapshot, row, stored)
        if value is not None:
            found.append((layout.keyspace_of(layout.key_of(row)[len(_START) :]), decode(value)))
    return found


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin with a pin's prefix: that has a byte below 255 in it."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])
