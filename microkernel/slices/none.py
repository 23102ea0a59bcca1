"""Slices where no control group can be made: signals stand in for freezing and ending, nothing limits
anything."""

import os
import signal
from contextlib import suppress

import trio

from . import turns
from .group import LOOK_AGAIN, started
from .limits import Limits


class GroupOfProcesses:
    """The processes that the kernel names as members; what they fork is not among them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._since: dict[int, int] = {}
        """By process when it started: a number is given to another program once its process is gone."""

    def open(self) -> list[int]:
        return []

    def joined(self, pid: int) -> None:
        if (since := started(pid)) is not None:
            self._since[pid] = since

    def limit(self, limits: Limits) -> list[str]:
        asked = [
            name
            for name, value in (
                ("cpu_quota", limits.cpu_quota),
                ("memory", limits.memory),
                ("pids", limits.pids),
            )
            if value is not None
        ]
        return [f"{', '.join(asked)} of {self.name} not enforced: no control groups here"] if asked else []

    def short_turns(self, pid: int) -> list[str]:
        return [said] if (said := turns.shorten(pid)) else []

    def keep_from_swap(self) -> list[str]:
        return [f"{self.name} may be swapped: no control groups here"]

    def members(self) -> set[int]:
        self._since = {pid: since for pid, since in self._since.items() if started(pid) == since}
        return set(self._since)

    def killed_for_memory(self) -> int:
        return 0

    async def freeze(self) -> None:
        await self._until(signal.SIGSTOP, stopped=True)

    async def thaw(self) -> None:
        await self._until(signal.SIGCONT, stopped=False)

    async def end(self) -> None:
        while members := self.members():
            for pid in members:
                _send(pid, signal.SIGKILL)
            await trio.sleep(LOOK_AGAIN)

    def remove(self) -> list[str]:
        return []

    async def _until(self, number: int, *, stopped: bool) -> None:
        for pid in self.members():
            _send(pid, number)
        while any(_stopped(pid) is (not stopped) for pid in self.members()):
            await trio.sleep(LOOK_AGAIN)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _stopped(pid: int) -> bool | None:
    """Whether it stands still; None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (FileNotFoundError, ProcessLookupError):
        return None
