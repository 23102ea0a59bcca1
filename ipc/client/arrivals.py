"""What a message of the server's is to the request that it names: something for its stream, or its end.

`PeerMisbehaved` for what cannot be, with the check that did not hold: nobody has been given anything then, and the request
is still in hand.
"""

import msgspec

from atoll.ipc import errors
from atoll.ipc.errors import AtollError, DeadlineExceeded, PeerMisbehaved
from atoll.native import Kind

from .pending import Opened, Pending

CREDIT, FAULT, ITEM, REPLY = map(int, (Kind.CREDIT, Kind.FAULT, Kind.ITEM, Kind.REPLY))

_credit = msgspec.msgpack.Decoder(int)
_items = msgspec.msgpack.Decoder(list[bytes])


def feed(pending: Pending, stream: Opened, kind: int, payload: memoryview) -> bool:
    """Give a stream what a message has for it. Whether more may come."""
    spec = pending.site.spec
    if kind == REPLY and spec.kind != "upload":
        raise PeerMisbehaved(spec.label, "kind of reply")
    try:
        if kind == ITEM:
            stream.arrived(_items.decode(payload))
        elif kind == CREDIT:
            stream.credited(_credit.decode(payload))
        elif kind == REPLY:
            stream.arrived([payload.tobytes()])
    except msgspec.DecodeError:
        raise PeerMisbehaved(spec.label, "items" if kind == ITEM else "credit") from None
    except PeerMisbehaved:
        raise PeerMisbehaved(
            spec.label, "more credit than a window" if kind == CREDIT else "items without credit"
        ) from None
    return kind in (ITEM, CREDIT)


def outcome(pending: Pending, kind: int, payload: memoryview) -> AtollError | None:
    """With what a message ends a request: an error, or nothing but its end."""
    if kind == FAULT:
        error = errors.decode(payload, pending.site.spec)
        if isinstance(error, DeadlineExceeded) and pending.seconds is not None:
            error = DeadlineExceeded(error.method, pending.seconds)  # the server knows when, not how long
        return error
    if pending.stream is None:
        raise PeerMisbehaved(pending.site.spec.label, "kind of reply")
    return None
