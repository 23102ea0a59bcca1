"""What a replay's process and the program that asked for it say to each other, over one socket.

A frame is four bytes of length, then one tagged Struct in MessagePack. The program speaks first (`Case`); then the process
asks for what was (`Ask`), one question at a time, and at the end says what came of it (`Played`).
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from atoll.ipc.system.calls import Asked, OpeningRow, Recorded

LENGTH: Final = struct.Struct("<I")
FRAME_MOST: Final = 1 << 30


class Case(Struct, frozen=True, kw_only=True, tag=True):
    """What is to be run again."""

    opening: OpeningRow
    start: list[Asked]
    """What the server's `start` asked for."""
    before: list[Recorded]
    """Calls to run first, for what they leave in memory."""
    call: Recorded
    revisions: dict[int, int]
    """By place among `before`, and -1 for the call: the revision at which it began."""
    debug: bool = False


class Ask(Struct, frozen=True, kw_only=True, tag=True):
    """A read of a keyspace as of then: `State.get`, say, with its arguments."""

    need: str
    method: str
    arguments: bytes


class Answer(Struct, frozen=True, kw_only=True, tag=True):
    reply: bytes | None = None
    fault: bytes | None = None


class Change(Struct, frozen=True, kw_only=True):
    """A row that the call wrote, then or now; None: it did not, `deleted` apart."""

    need: str
    key: str
    then: Any = None
    now: Any = None
    deleted_then: bool = False
    deleted_now: bool = False
    same: bool


class Question(Struct, frozen=True, kw_only=True):
    """A call of another server that was made then and not now, or now and not then."""

    need: str
    method: str
    arguments: Any
    then: bool
    """Made then, and not now."""


class Played(Struct, frozen=True, kw_only=True, tag=True):
    """What came of it. Values are as the types of the interface and of the rows have them, in plain form."""

    then: Any = None
    """The recorded reply, or fault as a sentence."""
    now: Any = None
    then_failed: bool = False
    now_failed: bool = False
    answered: bool = True
    """False: no answer was recorded, there is nothing to compare with."""
    same_answer: bool = False
    changes: list[Change] = []
    questions: list[Question] = []
    leaned: list[str] = []
    """Attributes of the instance that its handler read, and that no need and no class gave it."""
    moved: list[str] = []
    """Reads that saw what was written after the call had begun."""
    hindrances: list[str] = []
    """What keeps it from being replayed at all."""
    log: list[tuple[str, str]] = []
    """Level and text of what it logged."""


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """The process is gone; said by who confined it."""

    how: str
    clean: bool


ToProcess = Case | Answer
FromProcess = Ask | Played | Ended
to_process = msgspec.msgpack.Decoder(ToProcess)
from_process = msgspec.msgpack.Decoder(FromProcess)
_encode = msgspec.msgpack.Encoder().encode


def framed(message: Struct) -> bytes:
    packed = _encode(message)
    return LENGTH.pack(len(packed)) + packed


def received(read: Callable[[int], bytes]) -> bytes:
    """The next frame's message, undecoded; empty: the other end has closed. `read` gives so many bytes, or fewer at the
    end. Raises `ValueError` for a length that none has."""
    head = read(LENGTH.size)
    if len(head) < LENGTH.size:
        return b""
    (length,) = LENGTH.unpack(head)
    if length > FRAME_MOST:
        raise ValueError(f"a frame of {length} bytes")
    return read(length)
