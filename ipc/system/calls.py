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

from atoll.ipc.errors import DecodeFaults

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
    left_out: int = 0
    """Bytes of that, where they are more than is kept."""


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
WHOLE: Final = 256 << 10
"""Bytes of a payload that is recorded at most."""
LARGEST: Final = RECORD.size + MESSAGE.size + CONTEXT + WHOLE + 8
"""Bytes of a record at most: whoever claims more would have a reader gather it for ever."""
LATEST: Final = (1 << 63) - 1
"""In ns since the epoch: what is later is no time."""
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


class Tape:
    """Reads the tape of one process: give it the rows in the order of their keys. What is no record ends what is read of a
    row: what a process wrote of itself may be anything, and nothing is raised.

    `start` collects what its server's `start` asked for. Without `notes` the calls are of no use to replay, and come
    quicker.
    """

    def __init__(self, *, notes: bool = True) -> None:
        self.start: list[Asked] = []
        self._notes = notes
        self._rest, self._end = b"", -1
        self._hands: dict[tuple[int, int], Recorded] = {}
        self._began: dict[tuple[int, int], int] = {}
        self._handed = 0
        self._views: dict[str, int] = {}
        self._ahead: list[Ahead] = []

    def calls(self, row: ChunkRow) -> Iterator[Recorded]:
        """Those that a row answers; and casts."""
        data = self._rest + row.tape if row.position == self._end else row.tape
        self._end = row.position + len(row.tape)
        at = 0
        while at + RECORD.size <= len(data):
            size, kind, flags, what, channel, length, request, time = RECORD.unpack_from(data, at)
            least = RECORD.size + (MESSAGE.size if kind == _CALL else 0) + (0 if flags & _CUT else length)
            if size < least or size > LARGEST or size % 8:
                at = len(data)
                break
            if at + size > len(data):
                break
            key, body = (channel, request), at + RECORD.size
            if kind == _CALL:
                yield from self._call(row, data[body : at + size], flags, length, time, key)
            elif kind == _ANSWER and key in self._hands:
                reply = None if flags & _CUT else data[body : body + length]
                yield self._answered(key, _moment(row, time), what == _FAULT, reply, length)
            elif kind == _NOTE and self._notes and not flags & _CUT:
                self._noted(what, data[body : body + length], key)
            at += size
        self._rest = data[at:]

    def unanswered(self) -> list[Recorded]:
        """Calls that no row so far answers."""
        return list(self._hands.values())

    def _call(
        self, row: ChunkRow, data: bytes, flags: int, length: int, time: int, key: tuple[int, int]
    ) -> Iterator[Recorded]:
        (request, deadline, trace, badge, rights, capability, channel, method, _, _, _, interface, _,
         message_flags, kind, lane) = MESSAGE.unpack_from(data)  # fmt: skip
        context = data[MESSAGE.size : MESSAGE.size + CONTEXT] if message_flags & _HAS_CONTEXT else b""
        arguments = data[MESSAGE.size + len(context) :][:length]
        found = Recorded(
            boot=row.boot, process=row.process, channel=channel, request=request, time=_moment(row, time), method=method,
            badge=badge, rights=rights, interface=interface, lane=lane, deadline=deadline, trace=trace,
            capability=capability, cast=kind == _CAST, again=bool(message_flags & _AGAIN), context=context,
            arguments=None if flags & _CUT else arguments, size=length, beside=len(self._hands),
            views=dict(self._views), ahead=list(self._ahead),
        )  # fmt: skip
        self._handed += 1
        if key in self._hands:  # sent again to the same process: the first one's answer was given up
            yield self._hands.pop(key)
        if found.cast:
            yield found
        else:
            self._hands[key], self._began[key] = found, self._handed

    def _answered(
        self, key: tuple[int, int], time: int, failed: bool, reply: bytes | None, length: int
    ) -> Recorded:
        found = self._hands.pop(key)
        found.answered, found.failed, found.reply, found.reply_size = time, failed, reply, length
        found.beside += self._handed - self._began.pop(key)
        return found

    def _noted(self, what: int, payload: bytes, key: tuple[int, int]) -> None:
        try:
            if what == VIEW:
                viewed = _viewed.decode(payload)
                self._views[viewed.need] = viewed.revision
                self._ahead = [
                    own for own in self._ahead if own.need != viewed.need or own.revision > viewed.revision
                ]
            elif what == AHEAD:
                self._ahead.append(_ahead.decode(payload))
            elif what == ASKED and key == (0, 0):
                self.start.append(_asked.decode(payload))
            elif key in self._hands:
                self._hands[key].notes.append((what, payload))
        except DecodeFaults:
            return  # it is of no use to anybody


_viewed, _ahead = msgspec.msgpack.Decoder(Viewed), msgspec.msgpack.Decoder(Ahead)
_asked = msgspec.msgpack.Decoder(Asked)


def read(rows: Iterable[ChunkRow], *, notes: bool = True) -> Iterator[Recorded]:
    """The calls of one process, each when it was answered; those that were not, at the end."""
    tape = Tape(notes=notes)
    for row in rows:
        yield from tape.calls(row)
    yield from tape.unanswered()


def _moment(row: ChunkRow, time: int) -> int:
    """A time of a record. A process writes what it likes."""
    return max(0, min(row.wall + time, LATEST))
