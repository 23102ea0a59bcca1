"""What several contestants of a run share, and what is up only while one of them is open."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class Leased(ABC):
    def __init__(self) -> None:
        self._leases = 0

    @contextmanager
    def lease(self) -> Iterator[Self]:
        if self._leases == 0:
            self._start()
        self._leases += 1
        try:
            yield self
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._stop()

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _stop(self) -> None: ...
