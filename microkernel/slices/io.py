"""I/O classes of processes that run: what the disk's scheduler heeds where it knows no weights."""

import os
from collections.abc import Iterable

from atoll.native import lib

from .limits import Limits, io_priority


def refused(limits: Limits) -> str:
    """Why these limits' class cannot be had here; empty if it can."""
    if limits.io_class == "real-time" and os.geteuid() != 0:
        return "the I/O class real-time is root's to give: best-effort is in force"
    return ""


def apply(processes: Iterable[int], limits: Limits) -> None:
    """Move every thread of these processes to the class and weight; what they start inherits it."""
    if refused(limits):
        return
    for process in processes:
        try:
            threads = os.listdir(f"/proc/{process}/task")
        except FileNotFoundError:
            continue  # it has ended
        for thread in threads:
            lib.atoll_io_priority(int(thread), io_priority(limits))  # ESRCH: the thread has ended
