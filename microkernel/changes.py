"""Batches of changes to the kernel's rows, and the one way they reach the store.

A system call builds a `Changes`, by pure functions, and commits it once: its id makes a retry harmless (the
store answers an id it has with what it did then). It has no preconditions: nobody else writes these rows.
"""

from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Protocol

from msgspec import Struct

from atoll.ipc.system.records import AnyRow, KeyPart, Row, decode


class Found(Struct, frozen=True, kw_only=True):
    """A row as the store has it."""

    key: bytes
    value: bytes


class Changes(Struct, frozen=True, kw_only=True):
    """One transaction of the kernel. `writes`: key to value, None deletes; one write a key."""

    id: bytes
    """16 bytes; the same for every try, so that it takes effect once. Empty: it may take effect again."""
    writes: dict[bytes, bytes | None]
    note: str = ""
    """The system call and its caller, for the provenance."""


class Records(Protocol):
    """The kernel's keyspace in the store, as the kernel needs it."""

    async def commit(self, changes: Changes) -> int:
        """The revision, once durable."""
        ...

    def range(self, prefix: bytes) -> AsyncIterator[Found]:
        """All rows whose keys begin with `prefix`, in order of their keys, as of one revision."""
        ...


class Batch:
    """Collects the writes of one system call. `origin` names the call for all time (boot, caller and request
    id, say): the commit's id is its hash, so a retry, even one after a crash of the kernel, is the same
    commit."""

    def __init__(self, origin: bytes, note: str = "") -> None:
        self._origin = origin
        self._note = note
        self._writes: dict[bytes, bytes | None] = {}

    def put(self, *rows: Row) -> "Batch":
        for row in rows:
            self._writes[row.key()] = row.value()
        return self

    def delete(self, table: type[Row], *parts: KeyPart) -> "Batch":
        """Deletes the row whose key fields are `parts`, all of them."""
        if len(parts) != len(table.key_fields):
            raise ValueError(f"{table.__name__} has the key {table.key_fields}, not {parts}")
        self._writes[table.key_of(*parts)] = None
        return self

    def delete_row(self, row: Row) -> "Batch":
        self._writes[row.key()] = None
        return self

    def __bool__(self) -> bool:
        return bool(self._writes)

    def changes(self) -> Changes:
        return Changes(
            id=blake2b(self._origin, digest_size=16, person=b"atoll commit").digest(),
            writes=dict(self._writes),
            note=self._note,
        )


async def load(records: Records, table: type[AnyRow], *parts: KeyPart) -> list[AnyRow]:
    """All rows of a table, or those whose first key fields are `parts`, in order."""
    return [decode(table, found.value) async for found in records.range(table.key_of(*parts))]
