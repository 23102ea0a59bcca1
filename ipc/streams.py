"""Credits: how far a sender of items may be ahead of their receiver. No transport in here, only the counting.

An item costs credit by its size (`cost`), so that a window bounds both how many items lie between the two and
how many bytes. What was sent is counted from 0 in each direction of a stream. The receiver grants a *limit*,
the count that may not be passed; opening the stream grants the first window. A limit is absolute and never
falls, so one that is lost, doubled or late does no harm. Once half the window has been taken the receiver
grants again: one record for many items.

Invariants: sent <= limit, received <= granted, granted - taken <= window. Hence at most a window lies between
the two; and a sender whose items have all been taken has at least half a window left, which is what the
dearest item costs: no stream waits for both ends.
"""

from collections.abc import Sequence

from .errors import PeerMisbehaved

WINDOW = 1024
"""Credit that may be under way in one direction. Both sides know it."""

CREDIT_BYTES = 1024
"""Bytes of an item that one credit pays for: a window is 1024 small items, 1 MiB, or two items of any size."""

RECORD_ITEMS = 64
"""Items that a sender puts into one record at most."""


def cost(item: bytes, window: int = WINDOW) -> int:
    """What an item costs: a credit for every KiB begun, one at least, half a window at most."""
    if len(item) <= CREDIT_BYTES:
        return 1
    return min(1 + (len(item) - 1) // CREDIT_BYTES, max(1, window // 2))


def total(items: Sequence[bytes], window: int = WINDOW) -> int:
    """What several items cost together."""
    price = 0
    for item in items:
        price += 1 if len(item) <= CREDIT_BYTES else cost(item, window)
    return price


class Sender:
    """The side that sends items. `sent` has one writer, `limit` another: they may be two threads."""

    __slots__ = ("limit", "sent", "where", "window")

    def __init__(self, where: str, window: int = WINDOW) -> None:
        self.where = where
        self.window = window
        self.limit = window
        self.sent = 0

    @property
    def left(self) -> int:
        """How much may be spent now."""
        return self.limit - self.sent

    def affords(self, items: Sequence[bytes]) -> tuple[int, int]:
        """How many of these items, from the first on, there is credit for, and what they cost together."""
        left, spent = self.left, 0
        for place, item in enumerate(items):
            price = cost(item, self.window)
            if spent + price > left:
                return place, spent
            spent += price
        return len(items), spent

    def spend(self, price: int) -> None:
        """Pay for items, before they leave: what is granted for them may come at once. RuntimeError without credit: the
        caller waits for `left` first."""
        if price > self.left:
            raise RuntimeError(
                f"{self.where}: items for {price} to send and credit for {self.left}: wait for credit"
            )
        self.sent += price

    def grant(self, limit: int) -> None:
        """Take a limit from the receiver. `PeerMisbehaved` if it grants more than a window beyond what was
        sent."""
        if limit > self.sent + self.window:
            raise PeerMisbehaved(self.where, f"credit up to {limit} when {self.sent} was spent")
        self.limit = max(self.limit, limit)


class Receiver:
    """The side that takes items. `received` has one writer, the others another: they may be two threads."""

    __slots__ = ("granted", "received", "taken", "where", "window")

    def __init__(self, where: str, window: int = WINDOW) -> None:
        self.where = where
        self.window = window
        self.granted = window
        self.received = 0
        self.taken = 0

    def arrive(self, price: int) -> None:
        """Count items as arrived. `PeerMisbehaved` if there was no credit for them, or if there are none: a record that
        costs its sender nothing would be one of any number."""
        if price < 1:
            raise PeerMisbehaved(self.where, "a record of no items")
        if self.received + price > self.granted:
            raise PeerMisbehaved(
                self.where, f"items for {price} with credit for {self.granted - self.received}"
            )
        self.received += price

    def take(self, price: int) -> int | None:
        """Count items as consumed. The limit to grant now, or None while less than half a window is free."""
        if self.taken + price > self.received:
            raise RuntimeError(
                f"{self.where}: items for {price} taken of {self.received - self.taken} that are there"
            )
        self.taken += price
        limit = self.taken + self.window
        if 2 * (limit - self.granted) < self.window:
            return None
        self.granted = limit
        return limit
