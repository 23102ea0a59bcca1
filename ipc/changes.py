"""Waiting for a change of state that another thread makes: from a thread, from trio or from asyncio."""

import threading
from collections.abc import Callable

from .future import wait_for


class Signal:
    """Tells all who wait that something may have changed; each looks for itself whether it did."""

    __slots__ = ("_lock", "_waiters")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: list[Callable[[], None]] = []

    def notify(self) -> None:
        """Wake all who wait. From any thread, after the change."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()

    def _subscribe(self, ready: Callable[[], bool], wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiters.append(wake)
        if ready():  # it became so before we were on the list
            wake()

    def block(self, ready: Callable[[], bool]) -> None:
        """Halt this thread until `ready()`."""
        while not ready():
            woken = threading.Event()
            self._subscribe(ready, woken.set)
            woken.wait()

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Suspend this task until `ready()`."""
        while not ready():
            await wait_for(lambda wake: self._subscribe(ready, wake))
