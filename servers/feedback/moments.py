"""Moments that are held, so that their sets are read though the image gives up the past: pins in both keyspaces of feedback.

The rows' pin is made first and dropped last. So where the words have one the rows have it, too, and a moment counts as held
when the words do; what a crash leaves in between is no more than a pin of the rows, which whoever repeats the call finds.
"""

from typing import Final

from atoll.ipc.errors import QuotaExceeded
from atoll.ipc.system.state import Compacted, Pin, State

from .interface import Kept

_ALL: Final = "store"
"""As whose a pin is told that holds all keyspaces."""


async def hold(rows: State, words: State, name: str, revision: int, why: str) -> Kept:
    """Revision 0: now, or what the name holds. Raises Ahead, Compacted, PinExists, QuotaExceeded; then nothing is held
    that was not before."""
    pin = await rows.pin(name, revision, why)
    try:
        return _told(await words.pin(name, pin.revision, why))
    except (Compacted, QuotaExceeded):
        await rows.unpin(name)
        raise


async def let_go(rows: State, words: State, name: str) -> None:
    await words.unpin(name)
    await rows.unpin(name)


async def held(words: State) -> list[Kept]:
    """By name."""
    return [_told(pin) for pin in await words.pins() if pin.keyspace != _ALL]


def _told(pin: Pin) -> Kept:
    return Kept(pin.name, pin.revision, pin.why, pin.time / 1e9)
