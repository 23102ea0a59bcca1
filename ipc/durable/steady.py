"""The time by which workflows wait: the host's clock as it was when this process began, and steady from there.

Whoever sets the host's clock moves no timer of a process that runs. Over a restart a timer goes by the clock again, and
waits no longer than it was set for.
"""

from atoll.ipc import clock


class Steady:
    def __init__(self) -> None:
        self._ahead = clock.wall() - clock.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._ahead + clock.monotonic()
