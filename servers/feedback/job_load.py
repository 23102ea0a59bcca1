"""Calls that go on while something else happens, each of them timed: what a client notices of a swap."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from atoll.ipc.errors import AtollError

Call = Callable[[], object]


class Endured(NamedTuple):
    """What a load saw. `longest`: seconds that the slowest call took."""

    calls: int
    errors: int
    first_error: str
    longest: float
    seconds: float


class Load:
    """A context manager: inside it each of its threads makes one call after the other.

    A call that fails is counted and the next one made, so a load sees the end of a disturbance, too.
    """

    def __init__(self, calls: list[Call]) -> None:
        """One thread for each of `calls`."""
        self._changed = threading.Condition()
        self._count = self._errors = 0
        self._first_error = ""
        self._longest = 0.0
        self._over = False
        self._began = self._ended = 0.0
        self._crashed: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, args=(call,), name="load") for call in calls]

    def _work(self, call: Call) -> None:
        try:
            while not self._over:
                began = time.monotonic()
                problem = ""
                try:
                    call()
                except AtollError as error:
                    problem = f"{type(error).__name__}: {error}"
                self._note(time.monotonic() - began, problem)
        except BaseException as crash:
            with self._changed:
                self._crashed = self._crashed or crash
                self._changed.notify_all()

    def _note(self, took: float, problem: str) -> None:
        with self._changed:
            self._count += 1
            self._longest = max(self._longest, took)
            if problem:
                self._errors += 1
                self._first_error = self._first_error or problem
            self._changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Until `more` further calls have been answered, or one has failed."""
        with self._changed:
            wanted = self._count + more
            self._changed.wait_for(
                lambda: self._count >= wanted or self._errors > 0 or self._crashed is not None
            )
            self._check()

    def _check(self) -> None:
        """A thread that failed otherwise than by an AtollError makes the whole load worthless."""
        if self._crashed is not None:
            raise RuntimeError(f"the load itself failed: {self._crashed!r}") from self._crashed

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()
        self._ended = time.monotonic()

    @property
    def endured(self) -> Endured:
        """Of the whole load, after its end. RuntimeError if a thread of it failed by our own fault."""
        self._check()
        return Endured(self._count, self._errors, self._first_error, self._longest, self._ended - self._began)
