"""The engine as a model: plain sorted lists, for simulation and to hold the real engines to.

A snapshot is a generation number: every row keeps its values by generation, so that an open snapshot costs
nothing and can never be disturbed. `crash` gives the store as it would be found after the process died, which
for a model that is durable at once is simply itself, closed and opened anew.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager

from .engine import Batch, ConditionFailed, Full, Row, Table, check_size

_Values = list[tuple[int, bytes | None]]


class MemoryEngine:
    """An `Engine` in private memory; `limit` bytes of live rows at most, of which `reserve` are the
    kernel's."""

    def __init__(
        self, *, limit: int = 1 << 32, reserve: int = 0, maximum_batch: int = 16 << 20, maximum_key: int = 511
    ) -> None:
        self.maximum_batch = maximum_batch
        self.maximum_key = maximum_key
        self._limit = limit
        self._reserve = reserve
        self._used = 0
        self._generation = 0
        self._rows: dict[Table, dict[bytes, _Values]] = {table: {} for table in Table}
        self._order: dict[Table, list[bytes]] = {table: [] for table in Table}
        self._positions: list[int] = []
        self._events: list[bytes] = []

    @contextmanager
    def snapshot(self) -> Iterator["MemorySnapshot"]:
        yield MemorySnapshot(self, self._generation, len(self._positions))

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        check_size(batch, self.maximum_batch, self.maximum_key)
        for condition in batch.conditions:
            found = self._value(condition.table, condition.key, self._generation)
            if found != condition.value:
                raise ConditionFailed(condition, found)
        limit = self._limit if reserved else self._limit - self._reserve
        if self._used + batch.size > limit:
            raise Full("the store's limit is reached", self._used, limit)
        self._check_order(batch)
        self._generation += 1
        for table, rows in batch.puts.items():
            for key, value in rows:
                self._write(table, key, value)
        for table, key in batch.deletes:
            if self._value(table, key, self._generation) is not None:
                self._write(table, key, None)
        for position, event in batch.events:
            self._positions.append(position)
            self._events.append(event)
        self._used += batch.size

    def statistics(self) -> dict[str, int]:
        return {"used": self._used, "limit": self._limit, "reserve": self._reserve}

    def close(self) -> None:
        """Keeps everything: a model outlives its process."""

    def _check_order(self, batch: Batch) -> None:
        last = self._positions[-1] if self._positions else 0
        for position, _ in batch.events:
            if position <= last:
                raise ValueError(f"event {position} does not come after {last}")
            last = position

    def _value(self, table: Table, key: bytes, generation: int) -> bytes | None:
        values = self._rows[table].get(key)
        if values is None:
            return None
        at = bisect_right(values, generation, key=_generation)
        return values[at - 1][1] if at else None

    def _write(self, table: Table, key: bytes, value: bytes | None) -> None:
        values = self._rows[table].get(key)
        if values is None:
            values = self._rows[table][key] = []
            insort(self._order[table], key)
        if values and values[-1][0] == self._generation:
            values[-1] = (self._generation, value)
        else:
            values.append((self._generation, value))


def _generation(entry: tuple[int, bytes | None]) -> int:
    return entry[0]


class MemorySnapshot:
    def __init__(self, engine: MemoryEngine, generation: int, events: int) -> None:
        self._engine = engine
        self._generation = generation
        self._length = events

    def get(self, table: Table, key: bytes) -> bytes | None:
        return self._engine._value(table, key, self._generation)

    def cursor(self, table: Table) -> "MemoryCursor":
        return MemoryCursor(self, self._engine._order[table], table)

    def event(self, position: int) -> bytes | None:
        at = bisect_left(self._engine._positions, position, hi=self._length)
        if at < self._length and self._engine._positions[at] == position:
            return self._engine._events[at]
        return None

    def feed(self, after: int) -> Iterator[tuple[int, bytes]]:
        at = bisect_right(self._engine._positions, after, hi=self._length)
        for index in range(at, self._length):
            yield self._engine._positions[index], self._engine._events[index]

    def bounds(self) -> tuple[int, int]:
        if not self._length:
            return 0, 0
        return self._engine._positions[0], self._engine._positions[self._length - 1]


class MemoryCursor:
    """The place is a key, not an index: keys that later batches insert cannot shift it."""

    def __init__(self, snapshot: MemorySnapshot, order: list[bytes], table: Table) -> None:
        self._snapshot = snapshot
        self._order = order
        self._table = table
        self._key: bytes | None = None

    def seek(self, key: bytes) -> Row | None:
        return self._forward(bisect_left(self._order, key))

    def seek_before(self, key: bytes | None) -> Row | None:
        at = len(self._order) if key is None else bisect_left(self._order, key)
        while at > 0:
            at -= 1
            value = self._snapshot.get(self._table, self._order[at])
            if value is not None:
                self._key = self._order[at]
                return self._key, value
        self._key = None
        return None

    def next(self) -> Row | None:
        return None if self._key is None else self._forward(bisect_right(self._order, self._key))

    def _forward(self, at: int) -> Row | None:
        while at < len(self._order):
            value = self._snapshot.get(self._table, self._order[at])
            if value is not None:
                self._key = self._order[at]
                return self._key, value
            at += 1
        self._key = None
        return None
