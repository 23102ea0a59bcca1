"""Slices over version 2: one hierarchy for all controllers, which a group hands down only while it has no
process itself."""

import os
from pathlib import Path

from . import hierarchy, turns
from .group import kill_members, settled
from .limits import Limits

PERIOD = 100_000
"""Microseconds over which a CPU quota is counted."""
USED = ("cpu", "memory", "pids", "io")
KERNEL = "_kernel"
"""The kernel's own group: no slice can be called so, and bound it."""


def open_folder(folder: Path) -> int:
    """What clone3 makes a process in, and where cgroup.procs is found."""
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def kill(folder: Path) -> None:
    """Kill all that is in a group. Not where nothing is: once it was told to, nothing can be made in it
    (native/sandbox.c)."""
    if hierarchy.members(folder):
        (folder / "cgroup.kill").write_text("1")


class GroupV2:
    def __init__(self, name: str, folder: Path, controllers: frozenset[str]) -> None:
        self.name = name
        self._folder = folder
        self._controllers = controllers
        folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> list[int]:
        return [open_folder(self._folder)]

    def joined(self, pid: int) -> None:
        """It wrote itself into the group, and the group knows."""

    def limit(self, limits: Limits) -> list[str]:
        quota = "max" if limits.cpu_quota is None else str(max(1000, int(limits.cpu_quota * PERIOD)))
        wanted = [
            ("cpu", "cpu.weight", str(limits.cpu_weight)),
            ("cpu", "cpu.max", f"{quota} {PERIOD}"),
            ("memory", "memory.max", "max" if limits.memory is None else str(limits.memory)),
            ("memory", "memory.oom.group", "0"),
            ("pids", "pids.max", "max" if limits.pids is None else str(limits.pids)),
            ("io", "io.weight", str(limits.io_weight)),
        ]
        return [
            said
            for controller, file, text in wanted
            if controller in self._controllers
            and (self._folder / file).exists()
            and (said := hierarchy.write(self._folder / file, text))
        ]

    def short_turns(self, pid: int) -> list[str]:
        return [said] if (said := turns.shorten(pid)) else []

    def keep_from_swap(self) -> list[str]:
        if "memory" not in self._controllers:
            return [f"{self.name} may be swapped: no memory controller here"]
        file = self._folder / "memory.swap.max"  # a kernel that has no swap has no such file
        said = hierarchy.write(file, "0") if file.exists() else ""
        return [said] if said else []

    def members(self) -> set[int]:
        return hierarchy.members(self._folder)

    def killed_for_memory(self) -> int:
        events = self._folder / "memory.events"
        told = events.read_text().split() if events.exists() else []
        return int(told[told.index("oom_kill") + 1]) if "oom_kill" in told else 0

    async def freeze(self) -> None:
        (self._folder / "cgroup.freeze").write_text("1")
        await settled(self._folder, frozen=True)

    async def thaw(self) -> None:
        (self._folder / "cgroup.freeze").write_text("0")
        await settled(self._folder, frozen=False)

    async def end(self) -> None:
        kill(self._folder)
        await kill_members(self._folder)

    def remove(self) -> list[str]:
        said = hierarchy.remove(self._folder)
        return [said] if said else []


def hand_down(folder: Path, wanted: frozenset[str]) -> frozenset[str]:
    """Let the groups below `folder` have controllers. Returns those that they have."""
    for controller in sorted(wanted):
        hierarchy.write(folder / "cgroup.subtree_control", f"+{controller}")
    return frozenset((folder / "cgroup.subtree_control").read_text().split())


def make_room(base: Path, node: str) -> None:
    """Move this process out of `base`, which can hand down controllers only when it has no process of its
    own. The root of all groups can anyway.

    Other processes there (a login's) keep it from that: then the groups group, and limit nothing.
    """
    if _is_root(base):
        return
    kernel = base / hierarchy.ROOT / node / KERNEL
    kernel.mkdir(parents=True, exist_ok=True)
    hierarchy.write(kernel / "cgroup.procs", str(os.getpid()))


def go_back(base: Path, node: str) -> None:
    """Undo `make_room`: a group takes a process only once it hands down nothing. Where another node's groups are in
    `base`, it goes on doing that, and this process stays where it is."""
    if _is_root(base):
        return
    own = base / hierarchy.ROOT / node
    for folder in (*hierarchy.below(own), own, own.parent, base):
        for controller in _handed_down(folder):
            hierarchy.write(folder / "cgroup.subtree_control", f"-{controller}")
    hierarchy.write(base / "cgroup.procs", str(os.getpid()))


def _is_root(base: Path) -> bool:
    """Also a container's own `/` is no root."""
    return not (base / "cgroup.type").exists()


def _handed_down(folder: Path) -> list[str]:
    try:
        return (folder / "cgroup.subtree_control").read_text().split()
    except FileNotFoundError:
        return []
