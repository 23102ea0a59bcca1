"""One slice's or server's control group, over whichever hierarchies the host has."""

import os
import signal
from pathlib import Path
from typing import Protocol

import trio

from atoll.ipc.errors import PeerFault

from . import hierarchy
from .limits import Limits

LOOK_AGAIN = 0.001
"""Seconds between looks at a freezer or a group that is on its way to what was asked."""


class GroupFailed(PeerFault):
    template = "{server} could not be {what}: its control group refused ({reason}); `atoll doctor` says what this host gives"
    server: str
    what: str
    reason: str


class Group(Protocol):
    """A group of processes. A process is made in it, or joins before it is confined, by what `open` gives."""

    name: str

    def open(self) -> list[int]:
        """One descriptor a hierarchy, the caller's to close: of version 2 its folder, of version 1 its file `tasks`."""

    def joined(self, pid: int) -> None:
        """Told of each process that was started in it: where there is no control group, nothing else says so."""

    def limit(self, limits: Limits) -> list[str]:
        """Apply limits, at any time. Returns a sentence for each that this host does not take."""

    def keep_from_swap(self) -> list[str]:
        """Have nothing of its processes' memory written to a swap device. Returns a sentence where this host does not."""

    def short_turns(self, pid: int) -> list[str]:
        """Have a process of it wait less for its turn when it wakes. Returns a sentence where this host does not."""

    def members(self) -> set[int]:
        """The processes in it now."""

    def killed_for_memory(self) -> int:
        """How many of its processes the kernel killed because of its memory limit."""

    async def freeze(self) -> None:
        """Stop all its processes where they are; returns when they stand still. Raises `OSError`, as the next two do."""

    async def thaw(self) -> None: ...

    async def end(self) -> None:
        """Kill all its processes, frozen or not; returns when none is left but those that their parent has
        not reaped."""

    def remove(self) -> list[str]:
        """Remove it. It must be empty. Returns a sentence for what could not be removed."""


class Slices(Protocol):
    """All groups of one node."""

    kind: str
    """`v1`, `v2` or `none`."""
    lacks: tuple[str, ...]
    """One sentence for each thing that is not enforced on this host."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The node's folder in each hierarchy: all its groups lie in them."""

    def group(self, *names: str) -> Group:
        """The group at `atoll/NODE/NAMES...`, made if it is not there: a slice, or a server inside one."""

    async def clean(self) -> list[str]:
        """End whatever boots of this node left, and `leave`. Returns a sentence for what could not be removed."""

    def leave(self) -> list[str]:
        """Go back to the group this process was started in, and remove the node's groups that are empty then."""


async def until_written(path: Path, wanted: str, ask: str) -> None:
    """Write `ask` until the file reads as `wanted`: a freezer stops what was forked meanwhile only when
    asked again."""
    while True:
        if wanted in _asked(path, ask):
            return
        await trio.sleep(LOOK_AGAIN)


def _asked(freezer: Path, ask: str) -> list[str]:
    """What a freezer says after being asked; a control file answers at once, so this blocks nobody."""
    freezer.write_text(ask)
    return freezer.read_text().split()


async def settled(folder: Path, *, frozen: bool) -> None:
    """Wait until the kernel says that a version 2 group stands still, or moves again."""
    wanted = f"frozen {int(frozen)}"
    while wanted not in (folder / "cgroup.events").read_text():
        await trio.sleep(LOOK_AGAIN)


async def kill_members(folder: Path) -> None:
    """Kill until none is left alive but this process: what forks faster than one look is met by the next."""
    while living := [pid for pid in hierarchy.members(folder) - {os.getpid()} if alive(pid)]:
        for pid in living:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if pid in hierarchy.members(folder):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)
        await trio.sleep(LOOK_AGAIN)


def alive(pid: int) -> bool:
    """False for one that is gone, or has ended and waits for its parent."""
    return started(pid) is not None


def started(pid: int) -> int | None:
    """When it did, in clock ticks since the host's boot; None for one that is not alive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
