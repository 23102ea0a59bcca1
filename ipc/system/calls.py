"""What is recorded of a server's calls: rows of the keyspace `calls/SERVER`, and how the tape in them is read.

The C core writes the tape (`native/tape.c`), a record for each call and for each answer, and the SDK adds what the handler
was given beside them. Whoever reads has the rows of one process in the order of their keys: the tape goes on from one to the
next. What a process records of itself is its own word.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec
from msgspec import Struct

from .records import Row

PREFIX: Final = "calls/"
"""Of the names of these keyspaces; no other has it."""
SIZE: Final = 4 << 20
"""Bytes of a tape."""
SAMPLE: Final = 64
"""One call of so many is recorded where a server's calls are sampled."""


def keyspace_of(server: str) -> str:
    """The keyspace in which a server's calls are recorded."""
    return PREFIX + server


class Method(Struct, frozen=True, array_like=True):
    """A method as the recorded process served it."""

    number: int
    label: str
    """`Interface.method`."""
    kind: Literal["call", "stream", "upload"]
    durable: bool = False


class NeedThen(Struct, frozen=True, kw_only=True):
    """What a need was bound to."""

    kind: Literal["keyspace", "server", "config", "socket", "folder"]
    config: bytes = b""
    """Of a configuration, in MessagePack."""


class OpeningRow(Row, frozen=True, kw_only=True):
    """A process whose calls are recorded."""

    table = b"o"
    key_fields = ("boot", "process")
    boot: int
    process: int
    server: str
    package: str
    version: str
    payloads: bool
    """With arguments, replies and what handlers were given; else only that there were calls."""
    began: int
    methods: tuple[Method, ...]
    rights: tuple[tuple[str, ...], ...]
    """By interface, in bit order."""
    needs: dict[str, NeedThen]
    keyspaces: dict[str, str]
    """By need, the keyspace."""
    took_over: bytes | None = None
    """What the process before it handed over."""


class ChunkRow(Row, frozen=True, kw_only=True):
    """A piece of a process's tape."""

    table = b"t"
    key_fields = ("boot", "process", "position")
    boot: int
    process: int
    position: int
    wall: int
    """Nanoseconds to add to the tape's times for those since the epoch."""
    time: int
    dropped: int
    """Calls that found no room, since the process began."""
    tape: bytes


# the tape -----------------------------------------------------------------------------------------------------

RECORD = struct.Struct("<IBBHIIQQ")
"""`struct tape_record`: size, kind, flags, what, channel, length, request, time."""
MESSAGE = struct.Struct("<QQQQQQIIIIIIIHBB")
"""`atoll_message` without its context: request, deadline, trace, badge, rights, capability, channel, method, length, slot,
generation, interface, needed, flags, kind, lane."""
CONTEXT: Final = 64
_CALL, _ANSWER, _NOTE = 1, 2, 3
_CUT = 1
_HAS_CONTEXT, _AGAIN = 2, 4
_CAST, _FAULT = 2, 9

NOW, MONOTONIC, CHANCE, ASKED, VIEW, AHEAD = 1, 2, 3, 4, 5, 6
"""What a note says: a time of `now()`; of CLOCK_MONOTONIC; random bytes; a call of another server; how far a local view has
come, and an own write that is in it before. The last two are the process's and not one call's (channel 0, request 0)."""
DOUBLE = struct.Struct("<d")


class Asked(Struct, frozen=True, array_like=True):
    """A call that a handler made, and what came of it."""

    need: str
    """By which it was made."""
    method: str
    kind: Literal["call", "cast", "stream"]
    arguments: bytes
    reply: bytes | None = None
    fault: bytes | None = None
    digest: bytes = b""
    """In place of a long reply of the store, which can be read again."""


class Viewed(Struct, frozen=True, array_like=True):
    """A local view has everything up to a revision."""

    need: str
    revision: int


class Ahead(Struct, frozen=True, array_like=True):
    """An own write was in the view before the feed brought it."""

    need: str
    key: str
    revision: int


class Recorded(Struct, kw_only=True):
    """One call as the tape has it. Times are nanoseconds since the epoch."""

    boot: int
    process: int
    channel: int
    request: int
    time: int
    method: int
    badge: int
    rights: int
    interface: int
    lane: int
    deadline: int
    """CLOCK_MONOTONIC ns; 0: none."""
    trace: int
    capability: int
    cast: bool
    again: bool
    """It may have been delivered before."""
    context: bytes
    arguments: bytes | None
    """None: it was recorded without, or they were too long."""
    size: int
    """Of the arguments."""
    answered: int = 0
    """When; 0: never, as far as the tape goes."""
    failed: bool = False
    reply: bytes | None = None
    """What it was answered, a fault as errors travel."""
    reply_size: int = 0
    beside: int = 0
    """Calls that were in hand while it was."""
    notes: list[tuple[int, bytes]] = []
    views: dict[str, int] = {}
    """By need how far its local view had come."""
    ahead: list[Ahead] = []

    @property
    def id(self) -> str:
        return f"{self.boot}.{self.channel}.{self.request}"

    @property
    def outcome(self) -> Literal["replied", "failed", "cast", "none"]:
        if self.cast:
            return "cast"
        return "none" if not self.answered else "failed" if self.failed else "replied"


class _Tape:
    """The bytes of one process's tape, as far as they came."""

    def __init__(self) -> None:
        self.rest = b""
        self.end = -1

    def add(self, position: int, data: bytes) -> bytes:
        """What there is to read now, whole records or not; a gap before it makes the rest before it useless."""
        whole = self.rest + data if position == self.end else data
        self.end = position + len(data)
        return whole


def read(
    rows: Iterable[ChunkRow], *, notes: bool = True, start: list[Asked] | None = None
) -> Iterator[Recorded]:
    """The calls of one process, each when it was answered; those that were not, at the end. Without `notes` of no use to
    replay, and quicker. `start` gets what its server's `start` asked. A record that is none ends what is read of its
    chunk."""
    tape, hands = _Tape(), dict[tuple[int, int], Recorded]()
    views: dict[str, int] = {}
    ahead: list[Ahead] = []
    handed = 0
    began: dict[tuple[int, int], int] = {}
    for row in rows:
        data, at = tape.add(row.position, row.tape), 0
        while at + RECORD.size <= len(data):
            size, kind, flags, what, channel, length, request, time = RECORD.unpack_from(data, at)
            if size < RECORD.size or size % 8:
                at = len(data)
                break
            if at + size > len(data):
                break
            body = at + RECORD.size
            key = channel, request
            if kind == _CALL:
                if key in hands:  # sent again to the same process: the first one's answer was given up
                    yield hands.pop(key)
                found = _call(row, data, body, flags, length, time)
                found.beside = len(hands)
                handed += 1
                began[key] = handed
                found.views, found.ahead = dict(views), list(ahead)
                if found.cast:
                    yield found
                else:
                    hands[key] = found
            elif kind == _ANSWER and key in hands:
                found = hands.pop(key)
                found.answered, found.failed, found.reply_size = row.wall + time, what == _FAULT, length
                found.reply = None if flags & _CUT else data[body : body + length]
                found.beside += handed - began.pop(key)
                yield found
            elif kind == _NOTE and notes and not flags & _CUT:
                payload = data[body : body + length]
                if what == ASKED and key == (0, 0) and start is not None:
                    start.append(msgspec.msgpack.decode(payload, type=Asked))
                _noted(what, payload, hands.get(key), views, ahead)
            at += size
        tape.rest = data[at:]
    yield from hands.values()


def _call(row: ChunkRow, data: bytes, body: int, flags: int, length: int, time: int) -> Recorded:
    (request, deadline, trace, badge, rights, capability, channel, method, _, _, _, interface, _,
     message_flags, kind, lane) = MESSAGE.unpack_from(data, body)  # fmt: skip
    at = body + MESSAGE.size
    context = data[at : at + CONTEXT] if message_flags & _HAS_CONTEXT else b""
    at += len(context)
    return Recorded(
        boot=row.boot, process=row.process, channel=channel, request=request, time=row.wall + time, method=method,
        badge=badge, rights=rights, interface=interface, lane=lane, deadline=deadline, trace=trace,
        capability=capability, cast=kind == _CAST, again=bool(message_flags & _AGAIN), context=context,
        arguments=None if flags & _CUT else data[at : at + length], size=length, notes=[],
    )  # fmt: skip


def _noted(
    what: int, payload: bytes, call: Recorded | None, views: dict[str, int], ahead: list[Ahead]
) -> None:
    if what == VIEW:
        viewed = msgspec.msgpack.decode(payload, type=Viewed)
        views[viewed.need] = viewed.revision
        ahead[:] = [each for each in ahead if each.need != viewed.need or each.revision > viewed.revision]
    elif what == AHEAD:
        ahead.append(msgspec.msgpack.decode(payload, type=Ahead))
    elif call is not None:
        call.notes.append((what, payload))
