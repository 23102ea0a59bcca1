"""What time it is, for a process of the node: the host's clocks, or in a simulation the one that it moves.

The C core has its own look at CLOCK_MONOTONIC (`atoll_clock_stand`); trio gets its clock where it is run.
"""

import time
from collections.abc import Callable

monotonic: Callable[[], float] = time.monotonic
"""Seconds of CLOCK_MONOTONIC."""
monotonic_ns: Callable[[], int] = time.monotonic_ns
"""Nanoseconds of CLOCK_MONOTONIC."""
wall: Callable[[], float] = time.time
"""Seconds since the epoch; it jumps when the host's is set."""

sleep: Callable[[float], None] = time.sleep
"""Halts the thread for so many seconds."""


def follow(
    monotonic_now: Callable[[], int], wall_now: Callable[[], float], pause: Callable[[float], None]
) -> None:
    """Take the time from there, in this whole process, from now on: nanoseconds, and seconds since the epoch."""
    global monotonic, monotonic_ns, wall, sleep
    monotonic_ns, wall, sleep = monotonic_now, wall_now, pause
    monotonic = lambda: monotonic_now() / 1e9  # noqa: E731
