"""Writes records into a channel's memory as a peer that has left the SDK behind could. (Raw cffi.)"""

import struct
from dataclasses import dataclass, replace

from atoll.native import Kind
from tests.kit.memory import Memory

PAGE, LINE = 4096, 64
BULK = 1
"""The flag of a record whose payload lies in its sender's bulk half."""
_HEADER = struct.Struct("<QIIQIIIHBBQQQ")
assert _HEADER.size == LINE


@dataclass(frozen=True)
class Record:
    """A header's fields, as layout.h orders them; `position` is where it is written."""

    position: int
    length: int = 0
    method: int = 0
    request: int = 1
    slot: int = 0
    generation: int = 1
    epoch: int = 1
    flags: int = 0
    kind: int = Kind.CALL
    lane: int = 1
    deadline: int = 0
    trace: int = 0
    bulk: int = 0

    def packed(self) -> bytes:
        return _HEADER.pack(
            self.position + 1,
            self.length,
            self.method,
            self.request,
            self.slot,
            self.generation,
            self.epoch,
            self.flags,
            self.kind,
            self.lane,
            self.deadline,
            self.trace,
            self.bulk,
        )


class Attacker:
    """One end of a channel, played by the test. `server`: play the server against the client."""

    def __init__(self, memory: Memory, *, server: bool) -> None:
        self.memory = memory
        self.server = server
        self._ring = 1 << memory.shape.ring_bits
        self.position = [memory.base] * memory.shape.lanes

    def ring(self, lane: int) -> int:
        """Where the ring lies that this end writes."""
        return PAGE + (2 * lane + self.server) * self._ring

    def hears(self, lane: int = 1) -> bool:
        """Whether the other end has written its first record of `lane`."""
        base = self.memory.base
        at = PAGE + (2 * lane + (not self.server)) * self._ring + (base & (self._ring - 1))
        return int.from_bytes(self.memory.mapped[at : at + 8], "little") == base + 1

    def half(self) -> int:
        """Where the bulk half lies that this end writes."""
        shape = self.memory.shape
        return PAGE + 2 * shape.lanes * self._ring + (self.server << shape.bulk_bits)

    def consumed(self, lane: int) -> int:
        """Where the index lies that this end publishes."""
        return 2 * LINE + (2 * lane + (not self.server)) * LINE

    def write(self, record: Record, payload: bytes = b"", lane: int = 1, *, wake: bool = True) -> None:
        """Put a record where the victim looks for the next one of `lane`, then wake it."""
        position = self.position[lane]
        if record.flags & BULK:
            begin = self.half() + record.bulk
            self.memory.mapped[begin : begin + len(payload)] = payload
            payload = b""
        self._put(lane, position + LINE, payload)
        packed = replace(record, position=position).packed()
        self._put(lane, position + 8, packed[8:])
        self._put(lane, position, packed[:8])
        self.position[lane] = position + LINE + (len(payload) + LINE - 1) // LINE * LINE
        if wake:
            self.wake()

    def _put(self, lane: int, position: int, data: bytes) -> None:
        at = position & (self._ring - 1)
        first = min(len(data), self._ring - at)
        begin = self.ring(lane)
        self.memory.mapped[begin + at : begin + at + first] = data[:first]
        self.memory.mapped[begin : begin + len(data) - first] = data[first:]

    def rewind(self, lane: int, index: int) -> None:
        at = self.consumed(lane)
        self.memory.mapped[at : at + 8] = (index & (2**64 - 1)).to_bytes(8, "little")

    def wake(self) -> None:
        if self.server:
            self.memory.wake_client()
        else:
            self.memory.wake_server()
