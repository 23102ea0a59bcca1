"""The engines that the suite runs on, and how to find each again after its process has ended."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.servers.state.engine import Batch, Engine
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine

MAP = 1 << 30
ETCD = {"maximum_batch": 3 << 19, "maximum_operations": 128, "maximum_key": 2048}
"""What etcd takes unless it is told otherwise."""
POINTS = ["before the batch", "before the log", "after the log", "after the batch"]


class Store:
    """An engine that can be closed and opened anew over what it holds."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self.engine = make()

    @contextmanager
    def away(self) -> Iterator[None]:
        """This process has it closed meanwhile."""
        self.engine.close()
        yield
        self.engine = self._make()

    def reopen(self) -> Engine:
        with self.away():
            pass
        return self.engine


def lmdb_store(folder: Path) -> Store:
    return Store(lambda: LmdbEngine(folder, limit=256 << 20, reserve=1 << 20, map_size=MAP))


def memory_store(**options: int) -> Store:
    model = MemoryEngine(**options)
    return Store(lambda: model)


class Dying(LmdbEngine):
    """Its process is killed at a point of the batch that comes after so many others."""

    def __init__(self, folder: Path, left: int, point: str) -> None:
        super().__init__(folder, limit=256 << 20, reserve=1 << 20, map_size=MAP)
        self.left = left
        self.point = point
        append = self._log.append

        def appended(transaction: int, batch: Batch) -> None:
            self.die_at("before the log")
            append(transaction, batch)
            self.die_at("after the log")

        self._log.append = appended  # type: ignore[method-assign]

    def die_at(self, point: str) -> None:
        if self.left == 0 and point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        self.die_at("before the batch")
        super().commit(batch, reserved=reserved)
        self.die_at("after the batch")
        self.left -= 1
