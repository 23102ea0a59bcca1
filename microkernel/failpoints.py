"""Named steps at which a test has this kernel killed, as a crash would kill it: between an effect and its row, between a
row and its reply.

`ATOLL_FAIL_AT` names one step and is read once; `STEP@N` is the Nth time that the kernel comes to it. A kernel without it
only compares two words there.
"""

import os
import signal
from itertools import count

STEPS = (
    "start: intended",
    "start: spawned",
    "load: committed",
    "load: started",
    "stop: ended",
    "stop: committed",
    "freeze: frozen",
    "freeze: committed",
    "grant: committed",
    "revoke: cleared",
    "revoke: committed",
    "swap: started",
    "swap: drained",
    "swap: handed over",
    "swap: committed",
    "swap: served",
)
_AT, _, _time = os.environ.get("ATOLL_FAIL_AT", "").partition("@")
_NTH = int(_time or 1)
_times = count(1)


def reach(step: str) -> None:
    """The kernel has come to this step."""
    if step == _AT and next(_times) == _NTH:
        os.kill(os.getpid(), signal.SIGKILL)
