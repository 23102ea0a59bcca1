"""The engine as a model: plain sorted lists, for simulation and to hold the real engines to.

A snapshot is a generation number: while one is open, every row keeps its values by generation, so that an open snapshot
costs nothing and can never be disturbed. A batch that finds none open forgets what was replaced. A model is durable at
once: after a crash it is simply itself, closed and opened anew.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .engine import ROW_COST, Batch, ConditionFailed, Full, Row, Table, check_size
from .layout import pack

_EVENTS: Final = -1
"""The feed, as a map like the tables: position to event."""

_Values = list[tuple[int, bytes | None]]


class MemoryEngine:
    """An `Engine` in private memory; `limit` bytes of live rows at most, of which `reserve` are the
    kernel's."""

    def __init__(
        self,
        *,
        limit: int = 1 << 32,
        reserve: int = 0,
        maximum_batch: int = 16 << 20,
        maximum_operations: int = 1 << 19,
        maximum_key: int = 511,
    ) -> None:
        self.maximum_batch = maximum_batch
        self.maximum_operations = maximum_operations
        self.maximum_key = maximum_key
        self._limit = limit
        self._reserve = reserve
        self._used = 0
        self._generation = 0
        self._open = 0
        """Snapshots. One whose process was killed stays open: what it may see is kept for ever."""
        self._replaced: set[tuple[int, bytes]] = set()
        """Rows that have more than their newest value, or none but a deletion."""
        self._rows: dict[int, dict[bytes, _Values]] = {table: {} for table in (*Table, _EVENTS)}
        self._order: dict[int, list[bytes]] = {table: [] for table in self._rows}

    @contextmanager
    def snapshot(self) -> Iterator["MemorySnapshot"]:
        self._open += 1
        try:
            yield MemorySnapshot(self, self._generation)
        finally:
            self._open -= 1

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        check_size(batch, self)
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
            self._delete(table, key)
        for position in batch.drops:
            self._delete(_EVENTS, pack(position))
        for position, event in batch.events:
            self._write(_EVENTS, pack(position), event)
        if not self._open:
            self._forget()

    def settle(self) -> None:
        """There is nowhere else to look."""

    def forget_the_dead(self) -> None:
        """Nobody can tell whose a snapshot was."""

    def statistics(self) -> dict[str, int]:
        return {"used": self._used, "limit": self._limit, "reserve": self._reserve}

    def close(self) -> None:
        """Keeps everything: a model outlives its process."""

    def _check_order(self, batch: Batch) -> None:
        last = self._last()
        for position, _ in batch.events:
            if position <= last:
                raise ValueError(f"event {position} does not come after {last}")
            last = position

    def _last(self) -> int:
        """The last event is never dropped, so the last that there ever was is there."""
        order = self._order[_EVENTS]
        return int.from_bytes(order[-1], "big") if order else 0

    def _value(self, table: int, key: bytes, generation: int) -> bytes | None:
        values = self._rows[table].get(key)
        if values is None:
            return None
        at = bisect_right(values, generation, key=_generation)
        return values[at - 1][1] if at else None

    def _delete(self, table: int, key: bytes) -> None:
        if self._value(table, key, self._generation) is not None:
            self._write(table, key, None)

    def _write(self, table: int, key: bytes, value: bytes | None) -> None:
        values = self._rows[table].get(key)
        if values is None:
            values = self._rows[table][key] = []
            insort(self._order[table], key)
        before = values[-1][1] if values else None
        self._used += _cost(key, value) - _cost(key, before)
        if values and values[-1][0] == self._generation:
            values[-1] = (self._generation, value)
        else:
            values.append((self._generation, value))
        if len(values) > 1 or value is None:
            self._replaced.add((table, key))

    def _forget(self) -> None:
        """No snapshot is open: only the newest value of each row can still be seen."""
        for table, key in self._replaced:
            values = self._rows[table][key]
            del values[:-1]
            if values[0][1] is None:
                order = self._order[table]
                del order[bisect_left(order, key)], self._rows[table][key]
        self._replaced.clear()


def _generation(entry: tuple[int, bytes | None]) -> int:
    return entry[0]


def _cost(key: bytes, value: bytes | None) -> int:
    return 0 if value is None else len(key) + len(value) + ROW_COST


class MemorySnapshot:
    def __init__(self, engine: MemoryEngine, generation: int) -> None:
        self._engine = engine
        self._generation = generation

    def get(self, table: int, key: bytes) -> bytes | None:
        return self._engine._value(table, key, self._generation)

    def cursor(self, table: int) -> "MemoryCursor":
        return MemoryCursor(self, self._engine._order[table], table)

    def event(self, position: int) -> bytes | None:
        return self.get(_EVENTS, pack(position))

    def feed(self, after: int) -> Iterator[tuple[int, bytes]]:
        cursor = self.cursor(_EVENTS)
        row = cursor.seek(pack(after + 1))
        while row is not None:
            yield int.from_bytes(row[0], "big"), row[1]
            row = cursor.next()

    def bounds(self) -> tuple[int, int]:
        first, last = self.cursor(_EVENTS).seek(b""), self.cursor(_EVENTS).seek_before(None)
        if first is None or last is None:
            return 0, 0
        return int.from_bytes(first[0], "big"), int.from_bytes(last[0], "big")


class MemoryCursor:
    """The place is a key, not an index: keys that later batches insert cannot shift it."""

    def __init__(self, snapshot: MemorySnapshot, order: list[bytes], table: int) -> None:
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
