"""What must hold of a node at every moment, looked at after each event; and at the end, when all is quiet."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.microkernel.node import Node as KernelNode
from atoll.microkernel.wiring import Parts
from atoll.servers.state.check import check

from .store import Disk


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
    """The rows, event by event: each revision follows the one before."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._seen = 0

    def look(self) -> Iterator[str]:
        with self._disk.snapshot() as snapshot:
            for revision, _ in snapshot.feed(self._seen):
                if revision != self._seen + 1:
                    yield f"revision {revision} follows {self._seen}"
                self._seen = revision

    def whole(self) -> Iterator[str]:
        """What `atoll check` looks for."""
        yield from map(str, check(self._disk).breaches)
