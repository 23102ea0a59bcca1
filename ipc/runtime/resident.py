"""Memory of this process that is never written to a swap device: of a server with keys, or with what people said in private.

Python copies what it works with, frees it, and does not overwrite it: to lock a place for keys would promise what
nobody can hold. So the whole process is locked, each page once it is used. That needs an unlimited RLIMIT_MEMLOCK, which
the kernel gives where it may: a limit counts address space, and whoever met it would be refused its next allocation.
"""

import ctypes
import os
import resource
from typing import Final

_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4

NOT_ASKED: Final = "its process did not lock its memory"
_said = NOT_ASKED


def keep() -> str:
    """From now on, until the process ends. Returns why not; empty: it is so."""
    global _said
    most, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if most != resource.RLIM_INFINITY:
        _said = (
            f"a process here may lock {most >> 20} MiB (RLIMIT_MEMLOCK), and all of it would need no limit"
        )
    elif ctypes.CDLL(None, use_errno=True).mlockall(_CURRENT | _FUTURE | _ON_FAULT):
        _said = f"mlockall: {os.strerror(ctypes.get_errno())}"
    else:
        _said = ""
    return _said


def said() -> str:
    """What the last `keep` returned."""
    return _said
