"""Capability tables in shared memory: what each serving process checks messages against. (Raw cffi.)

One table a server, of segments that are added as it grows. It belongs to the server and not to its process: the
next process of the server gets the same memory.
"""

import time
from typing import Final

from atoll.native import ffi, lib

from .capabilities import NEVER, Capability
from .memory import Memory
from .rights import RightsMap, mask

ENTRIES: Final = 1024
"""Of one segment."""
ENTRY: Final = 64
SEGMENTS_MOST: Final = 64


class Table:
    """One server's table. `added` is called with each new segment's index, so that the process learns of it."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.segments: list[Memory] = []
        self._c: list[object] = []
        self._add()

    def _add(self) -> None:
        memory = Memory(f"table {self.server} {len(self.segments)}", ENTRIES * ENTRY)
        self.segments.append(memory)
        self._c.append(ffi.from_buffer(memory.map))

    def make_room(self, slot: int) -> list[int]:
        """Indices of the segments that were added so that `slot` has an entry."""
        added = []
        while slot >= len(self.segments) * ENTRIES:
            self._add()
            added.append(len(self.segments) - 1)
        return added

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
            expiry = max(1, time.monotonic_ns() + capability.expiry - now)
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

    def close(self) -> None:
        for mapped in self._c:
            ffi.release(mapped)
        for memory in self.segments:
            memory.close()
