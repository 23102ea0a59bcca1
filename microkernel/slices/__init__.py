"""Compute slices: what a server or a stage may use of processor, memory, processes and disk.

slices = choose("a1b2c3")
group = slices.group("training", "trainer")
said = group.limit(Limits(cpu_weight=200, memory=1 << 30))
"""

import tempfile
from pathlib import Path

from . import hierarchy, io, v1, v2
from .group import Group, GroupFailed, Slices, kill_members
from .limits import NODES_WEIGHT, IoClass, Limits, io_priority
from .none import GroupOfProcesses
from .v1 import GroupV1
from .v2 import GroupV2

__all__ = [
    "Group",
    "GroupFailed",
    "GroupOfProcesses",
    "IoClass",
    "Limits",
    "Slices",
    "choose",
    "io",
    "io_priority",
    "version_2",
]

NO_IO_WEIGHTS = (
    "I/O weights are not enforced (they need the bfq scheduler or version 2's io controller): I/O classes are"
)


class Chosen:
    """The groups of one node, over the hierarchies that were found usable."""

    def __init__(self, node: str, kind: str, lacks: tuple[str, ...], folders: dict[str, Path]) -> None:
        self.node = node
        self.kind = kind
        self.lacks = lacks
        self._folders = folders
        """The node's folder in each hierarchy, by controller; `unified` is version 2's."""
        self._groups: dict[tuple[str, ...], Group] = {}

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self._folders.values()))

    def group(self, *names: str) -> Group:
        if names not in self._groups:
            self._groups[names] = self._make(names)
        return self._groups[names]

    def _make(self, names: tuple[str, ...]) -> Group:
        name = "/".join(names)
        if self.kind == "v1":
            return GroupV1(
                name, {controller: folder.joinpath(*names) for controller, folder in self._folders.items()}
            )
        if self.kind == "v2":
            folder, held = self._folders["unified"], frozenset(v2.USED)
            for each in names:
                held = v2.hand_down(folder, held)
                folder /= each
                folder.mkdir(exist_ok=True)
            return GroupV2(name, folder, held)
        return GroupOfProcesses(name)

    async def clean(self) -> list[str]:
        for folder in hierarchy.left_by(self.node):
            await _end(folder)
        return self.leave()

    def leave(self) -> list[str]:
        self._groups.clear()
        if self.kind == "v2":
            v2.go_back(self._folders["unified"].parents[1], self.node)
        return [
            said
            for folder in hierarchy.left_by(self.node)
            for each in (*hierarchy.below(folder), folder)
            if not hierarchy.members(each) and (said := hierarchy.remove(each))
        ]


async def _end(folder: Path) -> None:
    for freezer in (folder, *hierarchy.below(folder)):
        if (freezer / "freezer.state").exists():
            hierarchy.write(freezer / "freezer.state", "THAWED")
    await kill_members(folder)
    for each in (folder, *hierarchy.below(folder)):
        if (each / "cgroup.freeze").exists():
            hierarchy.write(each / "cgroup.freeze", "0")  # whoever starts in it, if it stays, is to go on


def choose(node: str) -> Slices:
    """The slices of `node` (a name fit for a folder) on this host: version 2 where it has controllers, else
    1, else none."""
    found = hierarchy.mounts()
    unified = next((mount for mount in found if mount.version == 2), None)
    if unified and unified.controllers & {"cpu", "memory", "pids"} and _writable(unified.base):
        return version_2(node, unified)
    held = {
        controller: mount.base / hierarchy.ROOT / node
        for mount in found
        if mount.version == 1
        for controller in mount.controllers & {*v1.USED, "freezer"}
        if _writable(mount.base)
    }
    if held:
        return version_1(node, held, unified)
    user = "you may not make control groups here" if found else "no control groups are mounted here"
    return Chosen(
        node, "none", (f"slices are not enforced ({user}); freezing stops processes by signal",), {}
    )


def version_1(node: str, held: dict[str, Path], unified: hierarchy.Mount | None) -> Slices:
    folders = dict(held)
    if unified and _writable(unified.base):
        folders = {"unified": unified.base / hierarchy.ROOT / node, **folders}
        folders.pop("freezer", None)  # one membership less to take up at each start
    lacks = [
        f"no {controller} controller: what it limits is not enforced"
        for controller in v1.USED
        if controller not in held
    ]
    if "blkio" in held and not (held["blkio"].parents[1] / "blkio.bfq.weight").exists():
        lacks.append(NO_IO_WEIGHTS)
    if "cpu" in held:
        held["cpu"].mkdir(parents=True, exist_ok=True)
        lacks += filter(None, [hierarchy.weigh(held["cpu"].parent, NODES_WEIGHT)])
    return Chosen(node, "v1", tuple(lacks), folders)


def version_2(node: str, mount: hierarchy.Mount) -> Slices:
    """The slices of `node` over version 2, with the controllers that its hierarchy has: also with none."""
    folder = mount.base / hierarchy.ROOT / node
    wanted = mount.controllers & frozenset(v2.USED)
    folder.mkdir(parents=True, exist_ok=True)
    v2.make_room(mount.base, node)
    got = wanted
    for each in (mount.base, mount.base / hierarchy.ROOT, folder):
        got = v2.hand_down(each, got)
    lacks = tuple(
        f"the {controller} controller is not handed down to {mount.base}: what it limits is not enforced"
        for controller in v2.USED
        if controller not in got
    )
    if said := hierarchy.weigh(mount.base / hierarchy.ROOT, NODES_WEIGHT):
        lacks += (said,)
    if "io" in got and not (folder / "io.weight").exists():
        lacks += (NO_IO_WEIGHTS,)
    return Chosen(node, "v2", lacks, {"unified": folder})


def _writable(base: Path) -> bool:
    """Whether groups can be made here, found out by making one."""
    try:
        trial = Path(tempfile.mkdtemp(prefix="atoll-trial-", dir=base))
    except OSError:
        return False
    trial.rmdir()
    return True
