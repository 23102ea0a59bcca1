"""Queues: which workflow is started next, and when.

Pure: no clock, no store. What is handed in are the rows as they are; so after a restart the same is decided.
"""

import math
from collections import deque
from heapq import heappop, heappush
from typing import Final, NamedTuple

from msgspec import Struct


class Queue(Struct, frozen=True, kw_only=True):
    """What a queue of a server's admits, over all of its callers."""

    concurrency: int | None = None
    """Workflows that run at a time."""
    rate: int | None = None
    """Workflows that are started in any `per` seconds."""
    per: float = 1.0

    def __post_init__(self) -> None:
        if (self.concurrency is not None and self.concurrency < 1) or (
            self.rate is not None and (self.rate < 1 or self.per <= 0)
        ):
            raise ValueError(f"{self}: a queue admits at least one workflow at a time and in its time")


class Waiting(NamedTuple):
    """A workflow in a queue, in the order in which it goes."""

    priority: int
    order: int
    """The revision at which it came."""
    name: str


_RUNS: Final = -1
"""In place of the order in which it waited."""


class Admission:
    """What waits in one queue, what runs, what was started lately."""

    def __init__(self, queue: Queue, starts: list[float]) -> None:
        self.queue = queue
        self._delayed: list[tuple[float, Waiting]] = []
        self._ready: list[Waiting] = []
        self._there: dict[str, Waiting] = {}
        """What was not withdrawn: the heaps forget late."""
        self._running: dict[str, int] = {}
        """With the order in which what was started here waited, until its row says that it runs."""
        self._starts = deque(starts)
        self._began: dict[str, float] = {}
        """When what was started here was, until its row says that it runs."""

    def __len__(self) -> int:
        return len(self._there)

    def add(self, waiting: Waiting, due: float) -> None:
        """A workflow that may start at `due` at the earliest. One that was started as it waited there is no news: it keeps
        its place among those that run, and counts once."""
        if self._running.get(waiting.name) == waiting.order:
            return
        self._running.pop(waiting.name, None)
        self._there[waiting.name] = waiting
        heappush(self._delayed, (due, waiting))

    def runs(self, name: str) -> None:
        """A workflow of the queue's runs already."""
        self._there.pop(name, None)
        self._began.pop(name, None)
        self._running[name] = _RUNS

    def withdraw(self, name: str) -> None:
        """What was to be started is not to be: it took nobody's turn."""
        began = self._began.get(name)
        if began is not None and began in self._starts:
            self._starts.remove(began)
        self.gone(name)

    def stays(self, name: str) -> None:
        """What was started could not be: its row may say that it waits, as it did."""
        if name in self._running:
            self._running[name] = _RUNS

    def gone(self, name: str) -> None:
        """It waits or runs no more."""
        self._there.pop(name, None)
        self._began.pop(name, None)
        self._running.pop(name, None)

    def next(self, now: float) -> str | None:
        """The workflow to start now, counted as started and running; None: none may be."""
        self._pass(now)
        if not self._ready or self._full() or self._opens() > now:
            return None
        waiting = heappop(self._ready)
        del self._there[waiting.name]
        self._running[waiting.name] = waiting.order
        if self.queue.rate is not None:
            self._starts.append(now)
            self._began[waiting.name] = now
        return waiting.name

    def starts(self) -> list[float]:
        """When the last ones were started, as far as the rate asks for them."""
        return list(self._starts)

    def wakes(self) -> float:
        """When time alone may let another one start; inf: only an end will."""
        if self._full():
            return math.inf
        first = self._delayed[0][0] if self._delayed else math.inf
        return self._opens() if self._ready else max(first, self._opens())

    def _pass(self, now: float) -> None:
        while self._delayed and (self._delayed[0][0] <= now or self._withdrawn(self._delayed[0][1])):
            _, waiting = heappop(self._delayed)
            if not self._withdrawn(waiting):
                heappush(self._ready, waiting)
        while self._ready and self._withdrawn(self._ready[0]):
            heappop(self._ready)
        if self.queue.rate is not None:
            while len(self._starts) > self.queue.rate:
                self._starts.popleft()

    def _withdrawn(self, waiting: Waiting) -> bool:
        return self._there.get(waiting.name) is not waiting

    def _full(self) -> bool:
        return self.queue.concurrency is not None and len(self._running) >= self.queue.concurrency

    def _opens(self) -> float:
        """When the rate admits the next one."""
        rate = self.queue.rate
        return self._starts[-rate] + self.queue.per if rate is not None and len(self._starts) >= rate else 0.0
