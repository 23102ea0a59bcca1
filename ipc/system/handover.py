"""What an old version hands over: its state, and behind it where its channels stand, in one sealed memfd.

No packet holds the positions of every channel that a server may have. The process that wrote them may have been taken over,
so what is read here is looked at first: memory that nobody can change or cut any more, of just the size that was told.
"""

import os

import msgspec

from atoll.ipc.errors import PeerMisbehaved
from atoll.native import segments

from .control import HandedOver

POSITIONS_MOST = 1 << 20
"""Bytes: more than twice what 4,096 channels come to."""

Positions = dict[int, tuple[int, ...]]
"""By channel, what was consumed of each lane's requests, then what was produced of its replies."""

_encode = msgspec.msgpack.Encoder().encode
_positions = msgspec.msgpack.Decoder(Positions)


def write(state: bytes, positions: Positions) -> tuple[HandedOver, int]:
    """The packet, and the memory that goes with it: the caller's."""
    packed = _encode(positions)
    memory = os.memfd_create("atoll hand-over", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(os.dup(memory), "wb") as file:
            file.write(state)
            file.write(packed)
        segments.seal(memory, segments.SEALS["immutable"])
    except BaseException:
        os.close(memory)
        raise
    return HandedOver(size=len(state), positions=len(packed)), memory


def positions(told: HandedOver, memory: int) -> Positions:
    """Where its channels stood. `PeerMisbehaved` if the memory is not what was told."""
    wanted = segments.DEMANDED["immutable"]
    try:
        sealed = segments.seals(memory) & wanted == wanted
    except OSError:
        sealed = False
    if not sealed:
        raise PeerMisbehaved("the hand-over", "its memory is not sealed")
    if told.size < 0 or not 0 <= told.positions <= POSITIONS_MOST:
        raise PeerMisbehaved(
            "the hand-over", f"a state of {told.size} bytes and positions of {told.positions}"
        )
    if os.fstat(memory).st_size != told.size + told.positions:
        raise PeerMisbehaved("the hand-over", "its memory has another size")
    try:
        return _positions.decode(os.pread(memory, told.positions, told.size))
    except msgspec.DecodeError as fault:
        raise PeerMisbehaved("the hand-over", str(fault)) from None


def state(size: int, memory: int) -> bytes:
    """What the old version knew."""
    return os.pread(memory, size, 0) if size else b""
