"""What a process uses, as /proc says."""

import os
from contextlib import suppress

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def usage(pid: int) -> tuple[int, float]:
    """Resident bytes and seconds of CPU of a process; zeros for one that is gone."""
    with suppress(OSError):
        with open(f"/proc/{pid}/statm", "rb") as file:
            memory = int(file.read().split()[1]) * PAGE
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return memory, (int(fields[11]) + int(fields[12])) / TICKS
    return 0, 0.0


def runnable(pid: int) -> bool:
    """Whether a process has a CPU, or waits for one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"R"
    except OSError:
        return False
