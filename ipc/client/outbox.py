"""What leaves by a channel: requests, and the records that belong to them (items, end, credit, cancellation). (Raw cffi.)

What finds no room in its ring is *owed*: it is kept here and sent in order when the server has made room, and nothing that
comes later overtakes it. How much is owed is bounded: by the tasks that wait for their calls, by the credit of items, and
for calls that were merely started by `OWED_MOST`. Of a request that is over nothing is owed, but the cancellation of one
that was written; so there are no more of these than a ring has room for.

A request is noted with where it was written: `Pending.end` holds the position behind it on its ring and the mark of the
epoch (0: it is not in any ring). So after a server's death each request is judged by what was done with it and by nothing
else. A thread that has written a request and not noted it yet is passed over then, and judges its own request when it notes
that the epoch is dead. Whoever comes first claims the request, under the lock.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.ipc.errors import PeerDied, TooLarge
from atoll.native import Kind, Result, ffi, lib

from .pending import Pending

OWED_MOST = 16 << 20
"""Bytes of requests that may be owed: what one message may have. Each is reckoned `OVERHEAD` larger than its payload."""
OVERHEAD = 1024
MARK = 63
"""Of what the C core says of a sent record: the bits that hold the epoch's number; the others are the position."""
FULL, TOO_LARGE = int(Result.FULL), int(Result.TOO_LARGE)


class Record:
    """Something owed: a request (`kind` is None; it has its own payload), or what belongs to one."""

    __slots__ = ("kind", "payload", "pending", "site")

    def __init__(self, pending: Pending, site: Any, kind: Kind | None = None, payload: bytes = b"") -> None:
        self.pending = pending
        self.site = site
        self.kind = kind
        self.payload = payload


class Outbox:
    """`c` is the channel and `epoch` the one it was opened in, `table` holds the requests in hand by number."""

    def __init__(self, c: Any, epoch: int, table: dict[int, Pending]) -> None:
        self.owed: deque[Record] = deque()
        self.dead: dict[int, list[int]] = {}
        """Of each epoch that ended, by mark: what its server had taken, by lane."""
        self._c = c
        self._table = table
        self._largest = int(lib.atoll_channel_limit(c))
        self._mark = epoch & MARK
        self._paid: list[Callable[[], None]] = []
        self._reckoned = 0
        """Bytes of requests that are owed, or were since that was last reckoned."""
        self._given_up = 0
        """Requests that were cancelled since what is owed was last gone through for them."""
        self._walked = False
        # Reentrant: an object that is collected meanwhile may cancel what it held. So while what is owed is gone through it
        # may grow by a cancellation, and nothing else happens to it (`_walked`).
        self._lock = threading.RLock()

    # sending ----------------------------------------------------------------------------------------------------------

    def put(self, pending: Pending, site: Any) -> int:
        """Write a request into its ring; negative: a `Result`. Wakes nobody."""
        end: int = lib.atoll_send(
            self._c,
            site,
            pending.number,
            pending.payload,
            len(pending.payload),
            pending.until,
            pending.trace,
            ffi.NULL if pending.context is None else pending.context,
        )
        if end >= 0:
            self.note(pending, end)
        return end

    def note(self, pending: Pending, end: int) -> None:
        """A request was written."""
        pending.end = end
        if end & MARK in self.dead:
            self.claim(pending)

    def claim(self, pending: Pending) -> None:
        """The epoch in which a request was written had ended before that was noted: it is judged here, if it is not."""
        with self._lock:
            taken = self.dead.get(pending.end & MARK) if pending.end else None
            lost = [] if taken is None else self._judge([pending], taken)
        self._close(lost)

    def put_or_owe(self, pending: Pending, site: Any) -> int:
        """The same; without room it is owed. Wakes nobody either."""
        with self._lock:
            result = FULL if self.owed else self.put(pending, site)
            return self.owe(pending, site) if result == FULL else result

    def owe(self, pending: Pending, site: Any) -> int:
        """Keep a request until there is room, or its channel was renewed. `TOO_LARGE` for one that would never leave."""
        if len(pending.payload) > self._largest:
            return TOO_LARGE
        with self._lock:
            self.owed.append(Record(pending, site))
            self._reckoned += _weight(pending)
        return 0

    def may_owe(self, pending: Pending) -> bool:
        """Whether one more request may be owed that no task waits for."""
        with self._lock:
            if self._reckoned + _weight(pending) > OWED_MOST:
                self._reckoned = sum(_weight(each.pending) for each in self.owed if each.kind is None)
            return not self._reckoned or self._reckoned + _weight(pending) <= OWED_MOST

    def control(self, pending: Pending, kind: Kind, payload: bytes = b"") -> int:
        """Send or owe a record that belongs to a request in hand, of a size that `fits`. Negative: a `Result`, by which it
        will never leave."""
        with self._lock:
            record = Record(pending, pending.site.of(kind), kind, payload)
            result = FULL if self.owed else self._send(record)
            if result == FULL:
                self.owed.append(record)
                result = 0
        lib.atoll_ring_bell(self._c)
        return result

    def cancel(self, pending: Pending) -> None:
        """A request is over before its reply, and out of the table. Its server hears of it, if it may have the request."""
        with self._lock:
            pending.payload = b""
            self._given_up += 1
            # Not each time: many may be given up at once.
            if 2 * self._given_up >= len(self.owed) and not self._walked:
                self._drop()
        if pending.end:
            self.control(pending, Kind.CANCEL)
        self._tell()

    def _drop(self) -> None:
        """Forget what belongs to requests that are over."""
        self._given_up = 0
        self._walked = True
        for _ in range(len(self.owed)):  # not as a copy: what is appended meanwhile stays
            record = self.owed.popleft()
            if self._due(record):
                self.owed.append(record)
        self._walked = False

    def _due(self, record: Record) -> bool:
        """Whether it is still to be sent: its request is in hand, or it says that this one is not."""
        return record.kind == Kind.CANCEL or self._table.get(record.pending.number) is record.pending

    def _send_due(self, record: Record) -> int:
        if not self._due(record):
            return 0
        return self.put(record.pending, record.site) if record.kind is None else self._send(record)

    def _send(self, record: Record) -> int:
        """A record that belongs to a request whose server has died is nothing to that server's successor, nor to anybody:
        what becomes of the request is judged by itself."""
        result: int = lib.atoll_send(
            self._c,
            record.site,
            record.pending.number,
            record.payload,
            len(record.payload),
            0,
            record.pending.trace,
            ffi.NULL,
        )
        return result

    def pay(self) -> int:
        """Send what is owed, as far as there is room. 0, or the `Result` that keeps the rest from being sent."""
        with self._lock:
            if not self.owed:
                return 0
            self._walked = True
            result = 0
            while self.owed and result >= 0:
                result = self._send_due(self.owed[0])
                if result >= 0:
                    self.owed.popleft()
            self._walked = False
        lib.atoll_ring_bell(self._c)
        self._tell()
        return min(result, 0)

    def when_paid(self, notify: Callable[[], None]) -> None:
        """Call it once nothing is owed, on the thread that sees to that; at once if it is so."""
        with self._lock:
            if self.owed:
                self._paid.append(notify)
                return
        notify()

    def _tell(self) -> None:
        """Tell who waits for that, if nothing is owed: by whichever way it came to be so."""
        with self._lock:
            paid, self._paid = ([], self._paid) if self.owed or self._walked else (self._paid, [])
        for notify in paid:
            notify()

    def fits(self, pending: Pending, payload: bytes) -> None:
        """Raises `TooLarge` for an item that no channel like this carries."""
        if len(payload) > self._largest:
            raise TooLarge(f"an item of {pending.site.spec.label}", len(payload), self._largest)

    def disown(self) -> None:
        """In a fork: nothing is sent from here."""
        self._lock = threading.RLock()
        self.owed = deque()
        self._paid = []

    def forgive(self) -> None:
        """The channel has ended."""
        with self._lock:
            self.owed.clear()
        self._tell()

    # a server's death -------------------------------------------------------------------------------------------------

    def renewed(self, epoch: int, taken: list[int]) -> None:
        """A new server has the channel, and the one of the last epoch had `taken` so much. What may be sent again is sent
        in the order in which it was, before what no server has had; the rest is lost."""
        with self._lock:
            dead, self._mark = self._mark, epoch & MARK
            self.dead[dead] = taken
            self.dead.pop(self._mark, None)
            unsent = [record for record in list(self.owed) if not record.pending.end]
            self.owed = deque()
            written = [p for p in list(self._table.values()) if p.end and p.end & MARK == dead]
            lost = self._judge(written, taken)
            self.owed.extend(unsent)
        self._close(lost)

    def _close(self, lost: list[Pending]) -> None:
        for pending in lost:
            self._table.pop(pending.number, None)
            pending.over(PeerDied(pending.site.spec.label, True))
        self.pay()
        self._tell()

    def _judge(self, written: list[Pending], taken: list[int]) -> list[Pending]:
        """Owe again what may be sent again of these; what may not."""

        def ahead(pending: Pending) -> int:
            return _distance(pending.end & ~MARK, taken[pending.site.c.lane])

        lost = []
        for pending in sorted(written, key=ahead):
            spec, stream = pending.site.spec, pending.stream
            if ahead(pending) > 0 and not (stream and stream.began):
                self.owe(pending, pending.site.c)
            elif stream is None and (spec.idempotent or spec.once) and not pending.shared:
                self.owe(pending, pending.site.again)
            else:
                lost.append(pending)
            pending.end = 0
        return lost


def _weight(pending: Pending) -> int:
    """What a request is reckoned to be, in bytes."""
    return len(pending.payload) + OVERHEAD


def _distance(position: int, index: int) -> int:
    """How far a record that ends at `position` lies behind what `index` says was consumed; 0 or less: it was taken. Both
    wrap at 64 bits."""
    return ((position - index + (1 << 63)) & (1 << 64) - 1) - (1 << 63)
