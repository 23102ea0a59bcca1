"""I/O classes: the class of service of a call decides which threads do its file work, and at what disk
priority.

Each class has its own limit of threads, so that a scrub or a large upload cannot take them all, and its
threads run under the disk scheduler's best-effort levels (0 first, 7 last), `control` before `normal`
before `bulk`. The levels are set with ioprio_set(2); where that is not allowed (the filters of `seccomp`
and `sandbox`, another architecture) the separate limits still hold, and `applied` says so. Levels order
requests only under a scheduler that reads them (mq-deadline, bfq).
"""

import ctypes
import platform
import threading
from collections.abc import Callable
from typing import TypeVar

import trio

R = TypeVar("R")

_LEVELS = {"control": 0, "normal": 4, "bulk": 7}
_THREADS = {"control": 2, "normal": 4, "bulk": 1}
_BEST_EFFORT = 2 << 13
_WHO_THREAD = 1
_CALL_NUMBERS = {"x86_64": 251, "aarch64": 30}


class Priorities:
    """Runs file work for a class of service."""

    def __init__(self) -> None:
        self._limits = {name: trio.CapacityLimiter(count) for name, count in _THREADS.items()}
        self._levels = threading.local()
        """Per worker thread, the level it was last given; threads are shared by the classes."""
        self._number = _CALL_NUMBERS.get(platform.machine())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.applied = self._number is not None

    async def run(self, service: str, work: Callable[..., R], *args: object) -> R:
        """`work(*args)` in a thread of the class. A cancelled caller waits until the work is done: a file
        is never left.
        """
        return await trio.to_thread.run_sync(self._work, service, work, args, limiter=self._limits[service])

    def _work(self, service: str, work: Callable[..., R], args: tuple[object, ...]) -> R:
        level = _LEVELS[service]
        if self.applied and getattr(self._levels, "level", None) != level:
            self.applied = self._libc.syscall(self._number, _WHO_THREAD, 0, _BEST_EFFORT | level) == 0
            self._levels.level = level
        return work(*args)
