"""Credits: how far a sender of items may be ahead of their receiver. No transport in here, only the counting.

Items are numbered from 0 in each direction of a stream. The receiver grants a *limit*, the number of the
first item that may not be sent yet; opening the stream grants the first window. A limit is absolute and never
falls, so one that is lost, doubled or late does no harm. Once half the window has been taken the receiver
grants again: one record for many items.

Invariants: sent <= limit, received <= granted, granted - taken <= window. Hence at most a window of items
lies between the two, and a sender whose items have all been taken always has credit left: no stream waits for
both ends.
"""

from .errors import PeerMisbehaved

WINDOW = 256
"""Items that may be under way in one direction. Both sides know it."""

RECORD_ITEMS = 64
"""Items that a sender puts into one record at most."""


class Sender:
    """The side that sends items."""

    __slots__ = ("limit", "sent", "where", "window")

    def __init__(self, where: str, window: int = WINDOW) -> None:
        self.where = where
        self.window = window
        self.limit = window
        self.sent = 0

    @property
    def left(self) -> int:
        """How many items may be sent now."""
        return self.limit - self.sent

    def send(self, count: int = 1) -> None:
        """Count items as sent. RuntimeError without credit: the caller waits for `left` first."""
        if count > self.left:
            raise RuntimeError(
                f"{self.where}: {count} items to send and credit for {self.left}: wait for credit"
            )
        self.sent += count

    def grant(self, limit: int) -> None:
        """Take a limit from the receiver. `PeerMisbehaved` if it grants more than a window beyond what was
        sent."""
        if limit > self.sent + self.window:
            raise PeerMisbehaved(self.where, f"credit up to {limit} when {self.sent} items were sent")
        self.limit = max(self.limit, limit)


class Receiver:
    """The side that takes items."""

    __slots__ = ("granted", "received", "taken", "where", "window")

    def __init__(self, where: str, window: int = WINDOW) -> None:
        self.where = where
        self.window = window
        self.granted = window
        self.received = 0
        self.taken = 0

    def arrive(self, count: int = 1) -> None:
        """Count items as arrived. `PeerMisbehaved` if there was no credit for them."""
        if count < 0 or self.received + count > self.granted:
            raise PeerMisbehaved(self.where, f"{count} items with credit for {self.granted - self.received}")
        self.received += count

    def take(self, count: int = 1) -> int | None:
        """Count items as consumed. The limit to grant now, or None while less than half a window is free."""
        if self.taken + count > self.received:
            raise RuntimeError(
                f"{self.where}: {count} items taken of {self.received - self.taken} that are there"
            )
        self.taken += count
        limit = self.taken + self.window
        if 2 * (limit - self.granted) < self.window:
            return None
        self.granted = limit
        return limit
