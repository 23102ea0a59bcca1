"""Slices over version 1: one hierarchy a controller, and the version 2 hierarchy beside them, where it is
mounted, to freeze and kill by."""

import os
from contextlib import ExitStack
from pathlib import Path

from . import hierarchy, turns, v2
from .group import kill_members, settled, until_written
from .limits import Limits

PERIOD = 100_000
"""Microseconds over which a CPU quota is counted."""
UNLIMITED = -1
USED = ("cpu", "memory", "pids", "blkio")


class GroupV1:
    """One group: the same path in each hierarchy."""

    def __init__(self, name: str, folders: dict[str, Path]) -> None:
        self.name = name
        self._folders = folders
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    def open(self) -> list[int]:
        tasks = {folder / "tasks" for controller, folder in self._folders.items() if controller != "unified"}
        files: list[int] = []
        with ExitStack() as made:
            for path in sorted(tasks):
                files.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                made.callback(os.close, files[-1])
            if "unified" in self._folders:
                files.append(v2.open_folder(self._folders["unified"]))
            made.pop_all()
        return files

    def joined(self, pid: int) -> None:
        """It wrote itself into the group, and the group knows."""

    def limit(self, limits: Limits) -> list[str]:
        quota = UNLIMITED if limits.cpu_quota is None else max(1000, int(limits.cpu_quota * PERIOD))
        memory = UNLIMITED if limits.memory is None else limits.memory
        wanted = [
            ("cpu", "cpu.shares", str(max(2, limits.cpu_weight * 1024 // 100))),
            ("cpu", "cpu.cfs_period_us", str(PERIOD)),
            ("cpu", "cpu.cfs_quota_us", str(quota)),
            ("memory", "memory.limit_in_bytes", str(memory)),
            ("pids", "pids.max", "max" if limits.pids is None else str(limits.pids)),
        ]
        lacks = [
            said
            for controller, file, text in wanted
            if controller in self._folders
            and (said := hierarchy.write(self._folders[controller] / file, text))
        ]
        weight = self._folders.get("blkio", Path()) / "blkio.bfq.weight"
        if weight.exists():
            lacks += filter(None, [hierarchy.write(weight, str(max(1, min(1000, limits.io_weight))))])
        return lacks

    def short_turns(self, pid: int) -> list[str]:
        return [said] if (said := turns.shorten(pid)) else []

    def keep_from_swap(self) -> list[str]:
        if "memory" not in self._folders:
            return [f"{self.name} may be swapped: no memory controller here"]
        said = hierarchy.write(self._folders["memory"] / "memory.swappiness", "0")
        return [said] if said else []

    def members(self) -> set[int]:
        return hierarchy.members(self._any)

    def killed_for_memory(self) -> int:
        if "memory" not in self._folders:
            return 0
        told = (self._folders["memory"] / "memory.oom_control").read_text().split()
        return int(told[told.index("oom_kill") + 1]) if "oom_kill" in told else 0

    async def freeze(self) -> None:
        if "unified" in self._folders:
            await until_written(self._folders["unified"] / "cgroup.freeze", "1", "1")
            await settled(self._folders["unified"], frozen=True)
        else:
            await until_written(self._folders["freezer"] / "freezer.state", "FROZEN", "FROZEN")

    async def thaw(self) -> None:
        if "unified" in self._folders:
            (self._folders["unified"] / "cgroup.freeze").write_text("0")
            await settled(self._folders["unified"], frozen=False)
        else:
            await until_written(self._folders["freezer"] / "freezer.state", "THAWED", "THAWED")

    async def end(self) -> None:
        if "unified" in self._folders:
            v2.kill(self._folders["unified"])
        elif "freezer" in self._folders:
            await self.thaw()  # version 1 delivers no kill to the frozen
        await kill_members(self._any)

    def remove(self) -> list[str]:
        places = dict.fromkeys(self._folders.values())
        return [said for folder in places if (said := hierarchy.remove(folder))]

    @property
    def _any(self) -> Path:
        return next(iter(self._folders.values()))
