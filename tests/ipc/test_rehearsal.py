"""What the zygote does before it makes servers: nothing that it began may be left, since every server would have it."""

import os
import signal
import threading

from atoll.ipc.runtime.rehearsal import rehearse


def state() -> tuple[object, ...]:
    return (
        len(os.listdir("/proc/self/fd")),
        threading.enumerate(),
        signal.getsignal(signal.SIGINT),
        os.sched_getaffinity(0),
    )


def test_nothing_that_was_begun_is_left() -> None:
    rehearse()  # what is made once and kept
    before = state()
    rehearse()
    assert state() == before
