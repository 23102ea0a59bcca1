"""A function in a child that is killed before one of the steps by which it changes what is on the disk."""

import os
import signal
from collections.abc import Callable
from functools import partial

from .forked import forked

STEPS = ("fsync", "rename", "replace", "link", "unlink", "open")


def survives(at: int, function: Callable[[], object]) -> bool:
    """Whether the function, in a child, ended before it came to the step number `at`, where it is killed. AssertionError
    where it failed."""
    with forked(partial(_dying, at, function)) as child:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    if ended.si_code == os.CLD_EXITED:
        assert ended.si_status == 0
        return True
    return False


def _dying(at: int, function: Callable[[], object]) -> None:
    left = [at]

    def counted(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def step(*given: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return step

    for name in STEPS:
        setattr(os, name, counted(name))
    function()
