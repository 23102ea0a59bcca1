"""What must hold of a node at every moment, looked at after each event; and at the end, when all is quiet."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.ipc.system.records import BootRow, IntentRow, ProcessRow
from atoll.ipc.system.state import relative
from atoll.microkernel import intents
from atoll.microkernel.node import Node as KernelNode
from atoll.microkernel.wiring import Parts
from atoll.servers.state import layout
from atoll.servers.state.check import check

from .store import Disk

OF_STARTS = {IntentRow.table, ProcessRow.table, BootRow.table}


class Kernel:
    """The kernel's data between two of its steps; looked at again once it has changed."""

    def __init__(self) -> None:
        self._before: object = None

    def look(self, node: KernelNode, parts: Parts) -> Iterator[str]:
        channels = [(each.number, each.epoch, each.state, each.line) for each in node.channels]
        tables = [table.contents() for table in parts.authority.tables.values()]
        now = node.boot, len(node.tree), node.tree._next, channels, tables
        if now != self._before:
            self._before = now
            yield from node.tree.check()
            yield from node.channels.check()
            yield from parts.authority.check()


class Store:
    """The rows, event by event: each revision follows the one before; starts of processes, and what came of them."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._seen = 0
        self._intents: dict[int, IntentRow] = {}

    def look(self) -> Iterator[str]:
        touched = set[bytes]()
        with self._disk.snapshot() as snapshot:
            for revision, event in snapshot.feed(self._seen):
                if revision != self._seen + 1:
                    yield f"revision {revision} follows {self._seen}"
                self._seen = revision
                touched.update(relative(key)[1][:1] for key in layout.entry_of(event).keys)
        if touched & OF_STARTS:
            yield from self._starts()

    def _starts(self) -> Iterator[str]:
        found = self._disk.rows(IntentRow)
        boots = [row.epoch for row in self._disk.rows(BootRow)]
        yield from intents.check(found, self._disk.rows(ProcessRow), boots)
        now = {intent.id: intent for intent in found}
        for id, before in self._intents.items():
            if id not in now or not intents.kept(before, now[id]):
                yield f"intent {id:#x}, which was {before.outcome or 'open'}, is now {now.get(id, 'gone')}"
        self._intents = now

    def whole(self) -> Iterator[str]:
        """What `atoll check` looks for."""
        yield from map(str, check(self._disk).breaches)
