"""The call that a commit is made for: an id by which the store knows it again, and what stands for its arguments."""

import struct
from typing import Final, NamedTuple

from .context import Call
from .errors import BadRequest
from .naming import number_of

_identity = struct.Struct(">QQQQI")
_lasting = struct.Struct(">Q12sII")
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


class Origins:
    """Of the writes of one keyspace: those of a call are numbered in order, so that each finds its own outcome when the
    call is delivered again."""

    def __init__(self, boot: int) -> None:
        """`boot` makes the ids of calls unique over boots."""
        self.boot = boot
        self._last: tuple[Call | None, int] = (None, 0)

    def of(self, call: Call | None) -> Origin:
        """Of the next write of the call in hand."""
        if call is None:
            return Origin()
        return Origin(self._id(call), call.method, _MARK + call.told if call.told else b"")

    def _id(self, call: Call) -> bytes:
        if not call.request:
            return b""
        before, ordinal = self._last
        ordinal = ordinal + 1 if before is call else 0
        self._last = (call, ordinal)
        if call.key is not None:
            # The call of a workflow's step: the same again in whichever boot, by whichever channel, it is repeated.
            return _lasting.pack(call.badge, call.key, number_of(call.method), ordinal)
        return _identity.pack(self.boot, call.client, call.badge, call.request, ordinal)
