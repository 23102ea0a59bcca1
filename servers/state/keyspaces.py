"""The keyspaces of a store: numbers, names, retention. Rows of keyspace 0, which is the store's own.

A keyspace's number is the badge of its capabilities and the first four bytes of its keys. Numbers are given
out in order and never again; names do not change. So what a process has once read stays true, and only
unknown numbers make it look again; but for the retention, which the writer alone acts upon, and looks up anew.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.state import Expect, Retention, Write

from . import layout
from .engine import Engine
from .pins import OWN
from .versions import forward

RECORDS: Final = Retention(age=30 * 86400.0)
"""For how long the store keeps what became of its own rows: pins that were dropped, records of compactions."""
_START: Final = layout.prefix(OWN) + b"keyspace/"
_END: Final = layout.prefix(OWN) + b"keyspace0"


class Keyspace(msgspec.Struct, array_like=True, frozen=True):
    name: str
    retention: Retention
    reserved: bool


_decode = msgspec.msgpack.Decoder(Keyspace).decode


def key_of(number: int) -> bytes:
    """The absolute key of a keyspace's row."""
    return _START + layout.prefix(number)


class Keyspaces:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[int, Keyspace] = {OWN: Keyspace("store", RECORDS, True)}
        self.refresh()

    def refresh(self) -> None:
        """Reads the rows anew: after a commit that made one, or when another process may have."""
        with self._engine.snapshot() as snapshot:
            for row, stored in forward(snapshot, _START, _END, layout.LAST):
                value = layout.value_of(snapshot, row, stored)
                if value is not None:
                    self._known[layout.keyspace_of(layout.key_of(row)[len(_START) :])] = _decode(value)

    def by_name(self) -> dict[str, int]:
        return {keyspace.name: number for number, keyspace in self._known.items()}

    def name(self, number: int) -> str:
        found = self._find(number)
        return found.name if found is not None else f"#{number}"

    def exists(self, number: int) -> bool:
        return self._find(number) is not None

    def retention(self, number: int) -> Retention:
        found = self._find(number)
        return Retention() if found is None else found.retention

    def retentions(self) -> Iterator[tuple[int, Retention]]:
        """Keyspaces whose past is not kept for ever."""
        for number, keyspace in sorted(self._known.items()):
            if keyspace.retention != Retention():
                yield number, keyspace.retention

    def reserved(self, number: int) -> bool:
        """Whether its writes may use the space kept back for the kernel."""
        found = self._find(number)
        return found is not None and found.reserved

    def rows_for(self, name: str, retention: Retention, reserved: bool) -> tuple[int, Write, Expect]:
        """The next number, the row that makes it a keyspace, and what must hold for that."""
        if not name or len(name) > 200 or not name.isprintable():
            raise BadRequest("make_keyspace: name", "1 to 200 printable characters", repr(name))
        number = max(self._known) + 1
        key = key_of(number)
        return number, Write(key, msgspec.msgpack.encode(Keyspace(name, retention, reserved))), Expect(key, 0)

    def row_with(self, number: int, retention: Retention) -> Write:
        """The row of a keyspace that is there, with another retention."""
        changed = msgspec.structs.replace(self._known[number], retention=retention)
        return Write(key_of(number), msgspec.msgpack.encode(changed))

    def _find(self, number: int) -> Keyspace | None:
        found = self._known.get(number)
        if found is None:
            self.refresh()
            found = self._known.get(number)
        return found
