"""How soon a process that wakes has its turn: short turns, for one that everybody waits for.

A process that wakes beside one that computes waits until its own turn, at its length, would end earlier (EEVDF). Whoever
asks for short turns therefore waits for less, and gets no more of the processor for it; on kernels before 6.12 all turns
are as long.
"""

import ctypes
import errno
import os
import struct
from typing import Final

SHORT: Final = 100_000
"""Nanoseconds: the least that the host takes."""
_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of sched_setattr and sched_getattr, by machine."""
_attributes = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, nice, priority, runtime (the length of a turn), deadline, period."""
_RUNTIME: Final = 5
_libc = ctypes.CDLL(None, use_errno=True)


def shorten(pid: int) -> str:
    """Has the first thread of a process, and all that it starts from now on, take short turns. 0: this process. Why that is
    not so; empty if it is."""
    try:
        return (
            ""
            if _set(pid, SHORT) == SHORT
            else "this kernel has no turns of a length of one's own (Linux 6.12)"
        )
    except OSError as error:
        return f"sched_setattr: {error.strerror}"


def lacking() -> str:
    """Why no process has short turns here; empty if they can be had. Leaves this one as it was."""
    try:
        before = _get(0)[_RUNTIME]
    except OSError as error:
        return f"sched_getattr: {error.strerror}"
    said = shorten(0)
    if not said:
        _set(0, before)
    return said


def _set(pid: int, length: int) -> int:
    """The length of a turn that is in force then; 0 where the kernel tells none."""
    asked = list(_get(pid))
    asked[_RUNTIME] = length
    _call(0, pid, ctypes.create_string_buffer(_attributes.pack(*asked), _attributes.size), 0)
    return int(_get(pid)[_RUNTIME])


def _get(pid: int) -> tuple[int, ...]:
    told = ctypes.create_string_buffer(_attributes.size)
    _call(1, pid, told, _attributes.size, 0)
    return _attributes.unpack(told.raw)


def _call(which: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(os.uname().machine)
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _libc.syscall(numbers[which], *arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
