"""Capability tables in shared memory: what each serving process checks messages against. (Raw cffi.)

One table a server, of segments that are added as it grows. It belongs to the server and not to its process: the
next process of the server gets the same memory.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from atoll.ipc import clock
from atoll.native import ffi, lib

from . import slots
from .capabilities import NEVER, Capability
from .memory import Memory
from .rights import RightsMap, mask

ENTRIES: Final = 1024
"""Of one segment."""
ENTRY: Final = 64
SEGMENTS_MOST: Final = 64
assert ENTRIES * SEGMENTS_MOST == slots.MOST

_ENTRY = struct.Struct("=QIIQQQIIQQ")
"""`struct entry` of native/layout.h."""


class Standing(NamedTuple):
    """A valid entry."""

    slot: int
    generation: int
    channel: int
    rights: int
    badge: int
    capability: int


class Table:
    """One server's table. `added` is called with each new segment's index, so that the process learns of it."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.segments: list[Memory] = []
        self._c: list[object] = []
        self._used = 0
        """Entries below which all lie that were ever written."""
        self._add()

    def _add(self) -> None:
        memory = Memory(f"table {self.server} {len(self.segments)}", ENTRIES * ENTRY)
        self.segments.append(memory)
        self._c.append(ffi.from_buffer(memory.map))

    def make_room(self, slot: int) -> Iterator[int]:
        """Adds segments until `slot` has an entry. The index of each, once it is there: where the next one cannot be, this
        one stays."""
        while slot >= len(self.segments) * ENTRIES:
            self._add()
            yield len(self.segments) - 1

    def write(
        self,
        capability: Capability,
        *,
        channel: int,
        interface: int,
        rights: RightsMap,
        service: int,
        now: int,
    ) -> None:
        """Make a capability valid on a channel. `now`: as `Node.lived` says it. The entry must have room."""
        expiry = 0
        if capability.expiry != NEVER:
            expiry = max(1, clock.monotonic_ns() + capability.expiry - now)
        self._used = max(self._used, capability.slot + 1)
        lib.atoll_entry_write(
            self._c[capability.slot // ENTRIES],
            capability.slot % ENTRIES,
            channel,
            capability.generation,
            mask(capability.rights, rights),
            capability.badge,
            expiry,
            interface,
            service,
            capability.id,
        )

    def clear(self, capability: Capability) -> None:
        """Make a capability invalid; its holder is told that it was revoked."""
        if capability.slot < len(self.segments) * ENTRIES:
            lib.atoll_entry_clear(
                self._c[capability.slot // ENTRIES], capability.slot % ENTRIES, capability.generation
            )

    def standing(self) -> Iterator[Standing]:
        """What the entries say that are valid: read back from the memory that servers check against."""
        for number, memory in enumerate(self.segments):
            for index, words in enumerate(_ENTRY.iter_unpack(self._written(number, memory))):
                _, channel, generation, rights, badge, _, _, _, capability, _ = words
                if capability:
                    yield Standing(number * ENTRIES + index, generation, channel, rights, badge, capability)

    def _written(self, number: int, memory: Memory) -> bytes:
        """The part of a segment in which an entry was ever written."""
        return memory.map[: max(0, min(ENTRIES, self._used - number * ENTRIES)) * ENTRY]

    def contents(self) -> list[bytes]:
        """All that was ever written into each segment, as it is now."""
        return [self._written(number, memory) for number, memory in enumerate(self.segments)]

    def close(self) -> None:
        for mapped in self._c:
            ffi.release(mapped)
        for memory in self.segments:
            memory.close()
