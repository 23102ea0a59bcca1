"""Control groups as files: where the hierarchies are mounted, where this process is in them, and what a
write said."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

ROOT = "atoll"


class Mount(Struct, frozen=True):
    """A mounted hierarchy; `controllers` is empty for one that only groups processes."""

    path: Path
    version: int
    controllers: frozenset[str]
    own: str
    """The caller's group in it, from the mount's root: `/` or `/user.slice/...`."""

    @property
    def base(self) -> Path:
        """The caller's group as a folder: groups are made inside it, so that whoever bounds the caller
        bounds them too."""
        inside = self.path / self.own.strip("/")
        return inside if inside.is_dir() else self.path


def mounts() -> tuple[Mount, ...]:
    """Every hierarchy that is mounted here."""
    own: dict[str, str] = {}
    for line in lines_of(Path("/proc/self/cgroup")):
        _, names, place = line.split(":", 2)
        for controller in names.split(",") if names else ("",):
            own[controller] = (
                place.partition(f"/{ROOT}/")[0] or "/"
            )  # a kernel moves into a group of its node
    found: dict[Path, Mount] = {}
    for line in lines_of(Path("/proc/self/mounts")):
        _, place, kind, options, *_ = line.split(" ")
        path = Path(place.replace("\\040", " "))
        if kind == "cgroup2" and "" in own:
            try:
                controllers = frozenset((path / "cgroup.controllers").read_text().split())
            except OSError:  # something else is mounted over it
                continue
            found[path] = Mount(path, 2, controllers, own[""])
        elif kind == "cgroup":
            held = frozenset(options.split(",")) & own.keys()
            if held:
                found[path] = Mount(path, 1, held, own[min(held)])
    return tuple(found.values())


def lines_of(path: Path) -> list[str]:
    """What the host says in a file in which names of files and groups are: these may be any bytes."""
    return [line for line in os.fsdecode(path.read_bytes()).split("\n") if line]


def write(path: Path, text: str) -> str:
    """Write a control file. Empty if it was taken, else the sentence that says why not."""
    try:
        path.write_text(text)
    except OSError as error:
        return f"{path.name} of {path.parent} did not take {text.strip()!r}: {os.strerror(error.errno or 0)}"
    return ""


def weigh(nodes: Path, weight: int) -> str:
    """Set the share of the processor that a group has beside others, where its hierarchy has that controller: 100 is usual.
    Empty, or why not."""
    shares = nodes / "cpu.shares"
    if shares.exists():
        return write(shares, str(max(2, weight * 1024 // 100)))
    return write(nodes / "cpu.weight", str(weight)) if (nodes / "cpu.weight").exists() else ""


def members(folder: Path) -> set[int]:
    """The processes in a group and all groups below it."""
    found: set[int] = set()
    for each in (folder, *below(folder)):
        with suppress(FileNotFoundError, OSError):
            found.update(int(line) for line in (each / "cgroup.procs").read_text().split())
    return found


def below(folder: Path) -> Iterator[Path]:
    """All groups below one, the deepest first: the order in which they can be removed."""
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place) != folder:
            yield Path(place)


def left_by(node: str) -> list[Path]:
    """The groups that some boot of `node` made, wherever that boot's own group was."""
    found = []
    for mount in mounts():
        for place, folders, _ in os.walk(mount.path):
            if os.path.basename(place) == ROOT and node in folders:
                found.append(Path(place) / node)
    return found


def remove(folder: Path) -> str:
    """Remove an empty group and those below it. Empty if they are gone, else why not."""
    for each in (*below(folder), folder):
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"group {each} was not removed: {os.strerror(error.errno or 0)}"
    parent = folder.parent
    if parent.name == ROOT:
        with suppress(OSError):  # other nodes' groups may be in it
            parent.rmdir()
    return ""
