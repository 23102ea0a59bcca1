"""How many large blobs one channel may have under way at once.

Each holds a file open, and a process may open some thousands: without a bound, one client that begins downloads and
takes nothing would leave none for the others.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.ipc.errors import QuotaExceeded

MOST = 256
"""Of one channel."""


class Openings:
    """One task at a time touches an instance."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()

    @contextmanager
    def one(self, channel: int) -> Iterator[None]:
        """Counts while the block runs. Raises QuotaExceeded before it begins."""
        if self._count[channel] >= MOST:
            raise QuotaExceeded(f"channel {channel} in storage", "open blobs", MOST)
        self._count[channel] += 1
        try:
            yield
        finally:
            self._count[channel] -= 1
            if not self._count[channel]:
                del self._count[channel]
