"""The memory in which a process records its calls: made by the kernel, which has it still when the process has ended."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from atoll.ipc.system.calls import ChunkRow

from .memory import PAGE, Memory

_HEAD = struct.Struct("<QQQ")
"""`struct tape_head`: written, kept, dropped."""


PIECE = 512 << 10
"""Bytes of a row at most: what a message to the store carries with ease."""


class Tape:
    """One process's. Raises `OSError` where there is no memory for it."""

    def __init__(self, holder: str, size: int) -> None:
        self.memory = Memory(f"atoll tape {holder}", PAGE + size, written_by_others=True, preallocate=False)
        self._size = size

    def left(self, boot: int, process: int, put: int, now: int, monotonic: int) -> Iterator[ChunkRow]:
        """What a process that has ended did not put away; `put`: up to where it did, as its rows say. It may have written
        anything there: positions that cannot be leave nothing, and what the bytes mean is for whoever reads them."""
        written, kept, dropped = _HEAD.unpack_from(self.memory.map)
        kept = max(kept, put)
        length = written - kept
        if not 0 < length <= self._size or written >= 1 << 62:
            return
        at = kept % self._size
        first = self.memory.map[PAGE + at : PAGE + min(at + length, self._size)]
        data = first + self.memory.map[PAGE : PAGE + length - len(first)]
        for begin in range(0, length, PIECE):
            yield ChunkRow(
                boot=boot, process=process, position=kept + begin, wall=now - monotonic, time=now,
                dropped=min(dropped, 1 << 62), tape=data[begin : begin + PIECE],
            )  # fmt: skip

    def close(self) -> None:
        self.memory.close()
