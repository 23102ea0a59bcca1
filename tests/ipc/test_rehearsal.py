"""What the zygote does before it makes servers: nothing that it began may be left, since every server would have it."""

import os
import signal
import subprocess
import sys
import threading

from atoll.ipc.runtime.rehearsal import rehearse


def state() -> tuple[object, ...]:
    return (
        len(os.listdir("/proc/self/fd")),
        threading.enumerate(),
        signal.getsignal(signal.SIGINT),
        os.sched_getaffinity(0),
    )


def rehearse_twice() -> None:
    rehearse()  # what is made once and kept
    before = state()
    rehearse()
    assert state() == before


def test_nothing_that_was_begun_is_left() -> None:
    """In an interpreter of its own, as a zygote is: here what other tests left would be closed in between."""
    subprocess.run([sys.executable, "-c", f"from {__name__} import *; rehearse_twice()"], check=True)
