"""What the kernel tells a process without a message: epochs and states of its channels, the gate, revocations.

(Raw cffi.) A process reads its notice at every turn of its loop; only the kernel writes. The status is the other
way round: a serving process writes, and the kernel believes nothing of it but signs of life.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from atoll.ipc.errors import QuotaExceeded
from atoll.native import ffi, lib

from .memory import Memory

LINE = 64
CHANNELS_MOST = 1023
"""Channels of which one process may be the client at a time: lines in a notice segment of 64 KiB."""

OPEN, RESTARTING, CLOSED = 1, 2, 3
"""States of a channel, as layout.h has them."""


class Notice:
    """One process's notice segment; owns its memory."""

    def __init__(self, name: str) -> None:
        self.memory = Memory(f"notice {name}", (CHANNELS_MOST + 1) * LINE)
        self.name = name
        self._c: Any = ffi.from_buffer(self.memory.map)
        # The line given back last is taken last: a client may look at the line of a channel that was closed until it has
        # heard of that, and must not find another channel there.
        self._free = deque(range(CHANNELS_MOST))

    def take(self) -> int:
        """The index of a line for one more channel."""
        if not self._free:
            raise QuotaExceeded(account=self.name, resource="channels", limit=CHANNELS_MOST)
        return self._free.popleft()

    def taken(self, index: int) -> bool:
        """Whether a channel has the line."""
        return index not in self._free

    def give_back(self, index: int) -> None:
        """The process has closed the channel of this line."""
        self._free.append(index)

    def channel(self, index: int, epoch: int, state: int, base: int, taken: Sequence[int] = ()) -> None:
        """Say how a channel stands. `taken`: what the dead server of the epoch before had consumed of each lane."""
        words = ffi.new("uint64_t[3]", list(taken)) if taken else ffi.NULL
        lib.atoll_notice_channel(self._c, index, epoch, state, base, words)

    def gate(self, closed: bool) -> None:
        """Let the process take no further message, or take them again."""
        lib.atoll_notice_gate(self._c, int(closed))

    def revoked(self) -> None:
        """Have the process check again what it has checked and not begun."""
        lib.atoll_notice_revoked(self._c)

    def withdrew(self) -> None:
        """Something was taken back of the buffers that the process shared or was shared: it is to hear of it before it
        counts on what it knew."""
        lib.atoll_notice_withdrew(self._c)

    def close(self) -> None:
        ffi.release(self._c)
        self._c = None  # who writes into it now gets an error, not other memory
        self.memory.close()


class Signs(NamedTuple):
    """A serving process's signs of life."""

    heartbeat: int
    """Passes of its receive loop."""
    in_handler: int
    """Index of the method whose handler runs, plus 1; 0: none."""
    served: int
    parked: int
    late: int
    """Of the calls served, those whose plain handler returned after their deadline."""


class Status:
    """One serving process's status segment; owns its memory."""

    def __init__(self, name: str) -> None:
        self.memory = Memory(f"status {name}", 2 * LINE, written_by_others=True)
        self._c: Any = ffi.from_buffer(self.memory.map)
        self._words = ffi.new("uint64_t[5]")

    def window(self) -> int:
        """Odd while a message is between its capability's check and its handler's first step."""
        return int(lib.atoll_status_window(self._c))

    def signs(self) -> Signs:
        lib.atoll_status_read(self._c, self._words)
        return Signs(*self._words)

    def close(self) -> None:
        ffi.release(self._c)
        self._c = None
        self.memory.close()
