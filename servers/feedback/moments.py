"""Moments that are held, so that their sets are read though the image gives up the past: pins in both keyspaces of feedback.

The rows' pin is made first and dropped last. So where the words have one the rows have it, too, and a moment counts as held
when the words do; what a crash leaves in between is no more than a pin of the rows, which whoever repeats the call finds.
"""

from typing import Final

import trio

from atoll.ipc.errors import QuotaExceeded
from atoll.ipc.system.state import Compacted, Pin, State

from .interface import Kept

_ALL: Final = "store"
"""As whose a pin is told that holds all keyspaces."""


class Moments:
    """Of one process of the server. What is asked of them is done one after the other: between the two pins of one call
    another that found the first one, or took it, would leave the words' alone."""

    def __init__(self, rows: State, words: State) -> None:
        self._rows = rows
        self._words = words
        self._turn = trio.Lock()

    async def hold(self, name: str, revision: int, why: str) -> Kept:
        """Revision 0: now, or what the name holds. Raises Ahead, Compacted, PinExists, QuotaExceeded; then nothing is held
        that was not before."""
        async with self._turn:
            pin = await self._rows.pin(name, revision, why)
            try:
                return _told(await self._words.pin(name, pin.revision, why))
            except (Compacted, QuotaExceeded):
                await self._rows.unpin(name)
                raise

    async def let_go(self, name: str) -> None:
        async with self._turn:
            await self._words.unpin(name)
            await self._rows.unpin(name)

    async def held(self) -> list[Kept]:
        """By name."""
        return [_told(pin) for pin in await self._words.pins() if pin.keyspace != _ALL]


def _told(pin: Pin) -> Kept:
    return Kept(pin.name, pin.revision, pin.why, pin.time / 1e9)
