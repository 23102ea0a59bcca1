"""What the store asks of a database: an ordered map with snapshots, one conditional batch, and a feed.

Nothing here knows of revisions, keyspaces or history: those are one layer above (`history.py`) and shared by
every engine, so that an engine stays small enough to be replaced. An engine promises:

- *Snapshot reads.* What a snapshot shows never changes while it is open, and is all of a batch or nothing of
  it.
- *One conditional atomic batch.* `commit` applies every row and event of a batch, or none. It returns only
  when they are durable. If one condition does not hold, nothing is applied and `ConditionFailed` names it. A
  batch is at most `maximum_batch` bytes and `maximum_operations` operations, a key at most `maximum_key` bytes.
- *An ordered feed.* A batch may append events. An event's position is greater than that of every event before
  it; who reads from a position sees every later event exactly once and in order, also after a restart.
  Single events can be dropped; the last one never is.

The conformance suite in tests/conformance/store holds every engine to this.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import NamedTuple, Protocol

Row = tuple[bytes, bytes]

ROW_COST = 32
"""Bytes that a row takes besides key and value: page slot, node header, share of branch pages."""


class Table(IntEnum):
    """The maps of a store. Each has its own order; a batch may write to all of them."""

    META = 0
    """A handful of fixed rows: format, owner, identity; and one a keyspace that was compacted (`horizons.py`)."""
    VERSIONS = 1
    """(key, revision) to a small value, or to where a larger one lies: see `layout.py`."""
    COMMITS = 2
    """Commit id to revision."""
    VALUES = 3
    """(revision, index) to value. Every key put here is greater than all before, so an engine may append."""


class Condition(NamedTuple):
    """A row as it must be when the batch is applied; None: it must be absent."""

    table: Table
    key: bytes
    value: bytes | None


class Batch:
    """Rows and events that are applied together. Collected by one writer, committed once, then thrown
    away."""

    __slots__ = ("conditions", "deletes", "drops", "events", "puts", "size")

    def __init__(self) -> None:
        self.conditions: list[Condition] = []
        self.puts: dict[Table, list[Row]] = {}
        self.deletes: list[tuple[Table, bytes]] = []
        self.events: list[tuple[int, bytes]] = []
        self.drops: list[int] = []
        self.size = 0
        """Bytes that the batch will take in the store, roughly."""

    @property
    def operations(self) -> int:
        """Conditions, rows put and deleted, events appended and dropped, each counted as often as it was asked for."""
        rows = sum(map(len, self.puts.values())) + len(self.deletes)
        return len(self.conditions) + rows + len(self.events) + len(self.drops)

    def require(self, table: Table, key: bytes, value: bytes | None) -> None:
        self.conditions.append(Condition(table, key, value))

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """The last put of a key wins."""
        rows = self.puts.get(table)
        if rows is None:
            rows = self.puts[table] = []
        rows.append((key, value))
        self.size += len(key) + len(value) + ROW_COST

    def delete(self, table: Table, key: bytes) -> None:
        """Deletes are applied after the puts; an absent row is no error."""
        self.deletes.append((table, key))
        self.size += len(key)

    def append(self, position: int, event: bytes) -> None:
        self.events.append((position, event))
        self.size += len(event) + ROW_COST

    def drop(self, position: int) -> None:
        """Takes an event out of the feed; one that is not there is no error."""
        self.drops.append(position)
        self.size += 8


class ConditionFailed(Exception):
    """A row was not as the batch required; nothing was applied."""

    def __init__(self, condition: Condition, found: bytes | None) -> None:
        super().__init__(
            f"row {condition.key!r} of {condition.table.name} is {found!r}, not {condition.value!r}"
        )
        self.condition = condition
        self.found = found


class Full(Exception):
    """No room for the batch: the limit, the map or the disk is full. Nothing was applied; reads go on."""

    def __init__(self, what: str, used: int, limit: int) -> None:
        super().__init__(f"{what}: {used} of {limit} bytes are taken")
        self.what = what
        self.used = used
        self.limit = limit


class BatchTooLarge(Exception):
    """The batch, or one of its keys, is larger than the engine takes, or it has too many operations; nothing was
    applied."""


class Broken(Exception):
    """The medium failed under a write. What the process believes about the store can no longer be trusted: it
    must end, and recover by opening the store anew."""


class Cursor(Protocol):
    """A place in one table of a snapshot. Each step gives the row it moved to, or None past either end."""

    def seek(self, key: bytes) -> Row | None:
        """The first row at or after the key."""
        ...

    def seek_before(self, key: bytes | None) -> Row | None:
        """The last row before the key; None: the last of the table."""
        ...

    def next(self) -> Row | None: ...


class Snapshot(Protocol):
    """A view that does not change. Short-lived: an open snapshot pins pages, and the file grows meanwhile."""

    def get(self, table: Table, key: bytes) -> bytes | None: ...

    def cursor(self, table: Table) -> Cursor: ...

    def event(self, position: int) -> bytes | None: ...

    def feed(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Events whose position is greater than `after`, in order."""
        ...

    def bounds(self) -> tuple[int, int]:
        """Positions of the first and the last event; (0, 0) when there is none."""
        ...


class Engine(Protocol):
    maximum_batch: int
    maximum_operations: int
    maximum_key: int

    def snapshot(self) -> AbstractContextManager[Snapshot]: ...

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        """Applies the batch and makes it durable. `reserved` may use the space kept back for the kernel.

        Raises `ConditionFailed`, `Full`, `BatchTooLarge` (nothing applied, the engine goes on) or `Broken`
        (the process must end).
        """
        ...

    def settle(self) -> None:
        """What was committed also lies where a version of Atoll looks for it that knows nothing of how this engine makes
        commits durable. Raises `Broken`."""
        ...

    def forget_the_dead(self) -> None:
        """Snapshots of processes that were killed pin nothing any more. For the writer, from time to time."""
        ...

    def statistics(self) -> dict[str, int]: ...

    def close(self) -> None: ...


def check_size(batch: Batch, engine: Engine) -> None:
    """Raises `BatchTooLarge` for a batch that the engine does not take."""
    if batch.size > engine.maximum_batch:
        raise BatchTooLarge(f"a batch of {batch.size} bytes; this engine takes {engine.maximum_batch}")
    if batch.operations > engine.maximum_operations:
        raise BatchTooLarge(
            f"a batch of {batch.operations} operations; this engine takes {engine.maximum_operations}"
        )
    for rows in batch.puts.values():
        for key, _ in rows:
            if len(key) > engine.maximum_key:
                raise BatchTooLarge(f"a key of {len(key)} bytes; this engine takes {engine.maximum_key}")
