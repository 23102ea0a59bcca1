"""Compaction beside the writers: a step, a rest, and whoever wants to commit goes first."""

from collections.abc import Callable
from typing import Final

import trio

from atoll.ipc import clock
from atoll.ipc.deferred import Deferred
from atoll.ipc.system.state import Committed

from .compaction import Compactor
from .engine import Broken
from .group import Group, Transaction
from .ownership import Disowned
from .pins import OWN
from .transactions import Transactions

REST: Final = 4
"""Compaction rests so many times as long as its last step took."""
LEAST_REST: Final = 0.001
"""Seconds."""

Admit = Callable[[Transaction], Deferred[Committed]]


class Passes:
    """Of a writer's process, for as long as it is sure to be the one that stays."""

    def __init__(self, compactor: Compactor, group: Group, transactions: Transactions, admit: Admit) -> None:
        self.compactor = compactor
        self._group = group
        self._transactions = transactions
        self._admit = admit
        self._ended = False
        self._rested_at = -1
        """How many had committed when everything was handed over; who commits after that was given it back."""

    def end(self) -> None:
        """The engine is about to be closed."""
        self._ended = True

    def rest(self) -> None:
        """Everything was handed over: nothing is removed unless this process commits again."""
        self._rested_at = self._group.committed

    def allowed(self) -> bool:
        """Whether this process may remove anything: it is the owner, and goes on being it."""
        return self._group.owns and not self._ended and self._group.committed != self._rested_at

    def begin(self, now: int) -> bool:
        """Plans a pass, at a time in ns. Whether there is anything to do."""
        return self.allowed() and self.compactor.begin(now, self._transactions.least())

    async def make(self) -> None:
        """One pass, recorded at its end."""
        now = int(clock.wall() * 1e9)
        more = self.begin(now)
        while more and self.allowed():
            began = clock.monotonic()
            if not len(self._group):
                try:
                    more = self.compactor.step()
                except (Broken, Disowned) as fault:
                    raise SystemExit(f"state: {fault}") from fault
            await trio.sleep(max(LEAST_REST, REST * (clock.monotonic() - began)))
        if self.allowed():
            self.record(now)

    def record(self, now: int) -> None:
        """Has what was removed, and is not recorded yet, written down where it is time."""
        rows = self.compactor.records(now)
        for first in range(0, len(rows), self.compactor.rows_at_once):
            writes: list[tuple[bytes, bytes | None]] = [*rows[first : first + self.compactor.rows_at_once]]
            self._admit(Transaction(OWN, writes, [], note="compaction", reserved=True, time=now))
