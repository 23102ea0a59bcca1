"""What a dead kernel left: its processes, found by the marker on their command line and in its control groups.

The zygote sweeps them at once (`sweep`), if it lives; the next boot, and `clean`, end whoever is still there.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

import trio
from msgspec import Struct

END_WITHIN = 5.0
"""Seconds for a killed process to be gone: beyond, something holds it in the kernel."""
SWEEP_PAUSE, SWEEP_WITHIN = 0.005, 10.0
"""Seconds between two rounds of killing, and until the rest is left to the next boot."""


class Survivor(Struct, frozen=True):
    """A process that bears a node's marker: its number, when it started (clock ticks since boot), its
    command line, its parent now."""

    pid: int
    started: int
    command: tuple[str, ...]
    parent: int

    def is_still(self, other: "Survivor | None") -> bool:
        """Whether another look found the same process: its parent may have ended meanwhile."""
        return other is not None and (self.pid, self.started) == (other.pid, other.started)


def survivors(marker: str) -> list[Survivor]:
    """All processes but this one whose command line has `marker` as one argument."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            survivor = _look(int(entry.name))
            if survivor and marker in survivor.command:
                found.append(survivor)
    return found


def _look(pid: int) -> Survivor | None:
    """None for one that is gone, is a zombie, or is a kernel thread: these have no command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = tuple(part.decode(errors="replace") for part in file.read().split(b"\0")[:-1])
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Survivor(pid, int(words[19]), command, int(words[1])) if command else None


async def end_survivors(marker: str) -> list[Survivor]:
    """Kill all that bear `marker` and wait until none is left. Returns whom it could not end: a process that a control
    group of version 1 keeps frozen, or that waits in the kernel, dies only when it is let go.

    The number alone could by now be another process's: the pidfd is opened first, then the process looked
    at again.
    """
    until = time.monotonic() + END_WITHIN
    while (found := survivors(marker)) and time.monotonic() < until:
        for survivor in found:
            with suppress(ProcessLookupError):
                pidfd = os.pidfd_open(survivor.pid)
                try:
                    if survivor.is_still(_look(survivor.pid)):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        with trio.move_on_after(max(0.0, until - time.monotonic())):
                            await trio.lowlevel.wait_readable(pidfd)
                finally:
                    os.close(pidfd)
    return found


def sweep(groups: Sequence[str], marker: str) -> None:
    """Kill every process in these control groups, and all that bear `marker`: in rounds, since what forks may outrun
    one. Not this process."""
    until = time.monotonic() + SWEEP_WITHIN
    while time.monotonic() < until:
        living = False
        for folder in (folder for group in groups for folder, _, _ in os.walk(group)):
            living |= _kill_group(folder)
        for left in survivors(marker):
            living = True
            with suppress(ProcessLookupError, PermissionError):
                os.kill(left.pid, signal.SIGKILL)
        if not living:
            return
        time.sleep(SWEEP_PAUSE)


def _kill_group(folder: str) -> bool:
    """Kill a group's own processes. False: it had none but this one, or is gone."""
    with suppress(OSError):
        with open(f"{folder}/cgroup.procs") as file:
            members = {int(line) for line in file}
        others = members - {os.getpid()}
        if others == members and members:
            for control, word in (("freezer.state", "THAWED"), ("cgroup.kill", "1")):
                with suppress(OSError), open(f"{folder}/{control}", "w") as told:
                    told.write(word)
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(others)
    return False
