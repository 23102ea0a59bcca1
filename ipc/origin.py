"""The call that a commit is made for: an id by which the store knows it again, and what stands for its arguments."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple
from zlib import crc32

from .context import Call
from .errors import BadRequest
from .naming import number_of

CALL: Final = struct.Struct(">QQQQ")
"""What ids of a call's commits begin with, but for those of workflows' steps: boot, channel, badge, request."""
_LASTING: Final = struct.Struct(">Q12sI")
"""What ids of the commits of a step's calls begin with: badge, key, method. The same in whichever boot, by whichever
channel, the step is repeated."""
_WRITE: Final = struct.Struct(">II")
_TRANSACTION: Final = struct.Struct(">I")
IDS: Final = frozenset({CALL.size + _WRITE.size, CALL.size + _TRANSACTION.size})
"""Lengths of ids that begin with `CALL`."""
_MARK: Final = b"\xc1\x02"
"""No MessagePack begins so, and no sealed value."""
_MARKED: Final = len(_MARK) + 4
"""Bytes of a mark."""


class Origin(NamedTuple):
    """See the module. Without an id the store does not know the commit again."""

    id: bytes = b""
    note: str = ""
    mark: bytes = b""
    """Stands before the reply that is stored: by which arguments a workflow's step called; empty: nobody knows."""

    def stored(self, reply: bytes | None) -> bytes:
        """A stored reply without its mark. Raises `BadRequest` where that call was made by other arguments."""
        if reply is None or not reply.startswith(_MARK):
            return reply or b""
        if self.mark and reply[:_MARKED] != self.mark:
            raise BadRequest(
                f"{self.note}, called again by the same step of a workflow",
                "the arguments of the first time: a step that is run again must call the same, in the same order",
                "others",
            )
        return reply[_MARKED:]


class Taken:
    """A transaction's id."""

    __slots__ = ("id", "in_doubt")

    def __init__(self, id: bytes = b"") -> None:
        self.id = id
        self.in_doubt = False
        """The store was asked to commit it, and has not said that it did not."""


class Numbers:
    """Of one call, over all keyspaces: how its commits are told apart."""

    __slots__ = ("transactions", "writes")

    def __init__(self) -> None:
        self.writes: dict[int, int] = {}
        """By what stands for the keys that are written: so that each write finds its own outcome when the call is delivered
        again, in whatever order its tasks come to write then."""
        self.transactions: set[int] = set()
        """Of those that are open, or were committed."""


class Origins:
    """Of what one keyspace's holder commits for the calls in hand."""

    def __init__(self, boot: int) -> None:
        """`boot` makes the ids of calls unique over boots."""
        self.boot = boot

    def of(self, call: Call | None, *keys: bytes) -> Origin:
        """Of the next write of these keys by the call in hand."""
        if call is None:
            return Origin()
        return Origin(self._write(call, keys), call.method, _MARK + call.told if call.told else b"")

    def _write(self, call: Call, keys: tuple[bytes, ...]) -> bytes:
        if not call.request:
            return b""
        # What a step calls again it must call as before, in the same order: that is found out by its mark.
        kind = 0 if call.key is not None else crc32(b"\0".join(keys))
        writes = _numbers(call).writes
        number = writes.get(kind, 0)
        writes[kind] = number + 1
        return self._call(call) + _WRITE.pack(kind, number)

    @contextmanager
    def transaction(self, call: Call | None) -> "Iterator[Taken]":
        """For a transaction of the call in hand. One that comes to nothing leaves its id to the next, since that may be the
        same thing tried again; not so one of which nobody knows what it came to: the next would be taken for it."""
        if call is None or not call.request:
            yield Taken()
            return
        taken = _numbers(call).transactions
        number = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(number)
        own = Taken(self._call(call) + _TRANSACTION.pack(number))
        try:
            yield own
        except BaseException:
            if not own.in_doubt:
                taken.discard(number)
            raise

    def _call(self, call: Call) -> bytes:
        if call.key is not None:
            return _LASTING.pack(call.badge, call.key, number_of(call.method))
        return CALL.pack(self.boot, call.client, call.badge, call.request)


def _numbers(call: Call) -> Numbers:
    numbers = call.numbers
    if not isinstance(numbers, Numbers):
        numbers = call.numbers = Numbers()
    return numbers
