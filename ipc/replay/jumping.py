"""The time of a replay: it stands, whatever a person in the debugger takes, and what a handler sleeps is jumped over."""

import math

import trio

IDLE = 0.01
"""Seconds in which nothing happened before time jumps: a thread of the handler's may have something to say."""


class JumpingClock(trio.abc.Clock):
    def __init__(self) -> None:
        self._now = 0.0
        self._waited = math.nan
        """The deadline that was waited for last, and is jumped to if nothing has happened meanwhile."""

    def start_clock(self) -> None:
        """It stands."""

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """trio asks when nothing is runnable."""
        if deadline == math.inf or deadline <= self._now:
            return max(0.0, deadline - self._now)
        if deadline != self._waited:
            self._waited = deadline
            return IDLE
        self._now = deadline
        return 0.0
