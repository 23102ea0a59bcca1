"""The C core, as Python sees it: the compiled extension's `ffi` and `lib`, and names for the numbers they exchange.

Raw cffi is used only by modules that say so in their first line; everything else works with their typed faces.
"""

from enum import IntEnum

from atoll.native._core import ffi, lib

__all__ = ["Kind", "Op", "Refusal", "Result", "ffi", "lib"]


class Kind(IntEnum):
    """What a record is (`enum kind` in layout.h)."""

    CALL = 1
    CAST = 2
    ITEM = 3
    END = 4
    CREDIT = 5
    CANCEL = 6
    REPLY = 8
    FAULT = 9


SHORT_BITS = 11
"""Of the length in what `atoll_loop_next` hands out for a short call (loop.h)."""


class Op(IntEnum):
    """What `atoll_loop_next` hands out, in its top byte (`enum op` in loop.h)."""

    CALL = 1
    CAST = 2
    STREAM = 3
    REFUSED = 4
    LATE = 5
    MISBEHAVED = 6
    CLIENT = 7
    EXTERNAL = 8
    IDLE = 9
    FULL = 10
    GATED = 11
    LARGE = 12
    PARKED = 13
    TAPE = 14


class Refusal(IntEnum):
    """Why the capability check turned a message away (`enum refusal` in table.h)."""

    NOT = 0
    SLOT = 1
    CHANNEL = 2
    GENERATION = 3
    RIGHTS = 4
    EXPIRED = 5
    METHOD = 6
    SERVICE = 7


class Result(IntEnum):
    """Negative results of calls on a channel (`enum result` in channel.h)."""

    AGAIN = -1
    FULL = -2
    TOO_LARGE = -3
    EPOCH = -4
    CLOSED = -5
    MISBEHAVED = -6
    OTHER = -7
    DEADLINE = -8
