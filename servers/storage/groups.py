"""One fsync for all small blobs that arrived meanwhile.

Who comes first writes; whoever comes while a pack is being written waits, and the next writer takes all
that wait with it. So one caller alone never waits for others, and under load the packs grow by
themselves.
"""

from collections.abc import Awaitable, Callable, Mapping

import trio

GROUP_BYTES = 8 * 1024 * 1024
"""Content of one pack at most."""


class _Entry:
    __slots__ = ("blobs", "done", "error")

    def __init__(self, blobs: Mapping[bytes, bytes]) -> None:
        self.blobs = blobs
        self.done = False
        self.error: Exception | None = None


class Groups:
    """`write` makes a mapping of addresses to contents durable, all or none."""

    def __init__(self, write: Callable[[dict[bytes, bytes]], Awaitable[None]]) -> None:
        self._write = write
        self._turn = trio.Lock()
        self._waiting: list[_Entry] = []

    async def put(self, blobs: Mapping[bytes, bytes]) -> None:
        """Returns when all are durable. Raises what `write` raised for the group they were in."""
        entry = _Entry(blobs)
        self._waiting.append(entry)
        try:
            async with self._turn:
                if not entry.done:
                    await self._write_group(entry)
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        if entry.error is not None:
            raise entry.error

    async def _write_group(self, first: _Entry) -> None:
        """Write `first` and as many of the others as fit. Shielded: a member's cancellation must not end
        the others' write.
        """
        group: list[_Entry] = []
        together: dict[bytes, bytes] = {}
        size = 0
        for entry in [first, *(each for each in self._waiting if each is not first)]:
            size += sum(map(len, entry.blobs.values()))
            if group and size > GROUP_BYTES:
                break
            group.append(entry)
            together.update(entry.blobs)
        error: Exception | None = None
        with trio.CancelScope(shield=True):
            try:
                await self._write(together)
            except Exception as failure:
                error = failure
        for entry in group:
            entry.done = True
            entry.error = error
            if entry in self._waiting:
                self._waiting.remove(entry)
