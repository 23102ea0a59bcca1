"""Imported by a process under AddressSanitizer: its forks wait for threads to be gone that have ended.

The allocator is not made whole by a fork: a lock of it that another thread had at that moment is nobody's in the child,
which then waits for ever. A thread takes each of them in turn as it ends, to give back what it kept for itself, and for
Python it has ended before that.
"""

import os
import threading


def _without_those_that_end() -> None:
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        os.sched_yield()


os.register_at_fork(before=_without_those_that_end)
