"""What a node has of its host beside its files, and what is left of it: after a death, after a boot, when it is over."""

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .nodes import RealNode, groups_of, wait_for_end

FREED_WITHIN = 60.0
"""Seconds after which what is still there is taken to stay: a watchdog, no goal."""
ORPHANED_MOST = 1.0
"""Seconds from a kernel's death to that of the last process of its node, where no other test runs beside it."""


class Held(NamedTuple):
    """What a node that serves has of its host. Each boot makes it anew, so that it is no more after many than after one."""

    processes: int
    mounts: frozenset[str]
    groups: frozenset[str]
    memory: Counter[str]
    """Shared memory that any of its processes has open or mapped: by its kind, how many."""

    @classmethod
    def by(cls, node: RealNode) -> "Held":
        assert node.kernel is not None
        processes = [node.kernel.pid, *node.processes()]
        return cls(
            len(processes),
            mounts_of(node),
            frozenset(folder for group in groups_of(node) for folder, _, _ in os.walk(group)),
            Counter(kind for _, kind in {each for pid in processes for each in memory_of(pid)}),
        )

    def beyond(self, before: "Held") -> str:
        """What is more than there was before; empty: nothing."""
        more = [
            f"{self.processes} processes, not {before.processes}" * (self.processes > before.processes),
            *(f"mount {path}" for path in sorted(self.mounts - before.mounts)),
            *(f"group {path}" for path in sorted(self.groups - before.groups)),
            *(f"{number} more of {kind}" for kind, number in sorted((self.memory - before.memory).items())),
        ]
        return ", ".join(filter(None, more))


def no_more_than(before: Held, node: RealNode) -> None:
    """Wait until the node has no more than before: what is let go of goes a little later."""
    until = time.monotonic() + FREED_WITHIN
    while more := Held.by(node).beyond(before):
        assert time.monotonic() < until, f"still there {FREED_WITHIN:g} s later: {more}"


def mounts_of(node: RealNode) -> frozenset[str]:
    """Below the node's folder, as this program sees them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = (line.split()[4] for line in lines)
    return frozenset(place for place in places if str(node.folder) in place)


def memory_of(pid: int) -> set[tuple[int, str]]:
    """Each piece of shared memory that a process has open or mapped: its inode, and its name without what numbers it."""
    found = set()
    with suppress(OSError):  # it has ended meanwhile
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if (path := os.readlink(entry)).startswith("/memfd:"):
                    found.add((os.stat(entry.path).st_ino, kind_of(path)))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, _, name = line.partition(" /memfd:")
            if name:
                found.add((int(place.split()[4]), kind_of(name)))
    return found


def kind_of(path: str) -> str:
    return path.removeprefix("/memfd:").split()[0]


def own_memory() -> int:
    """Pieces of shared memory that this program has: what nobody has open or mapped is gone."""
    gc.collect()  # attachments that ended
    return len(memory_of(os.getpid()))


def last_gone(node: RealNode) -> float:
    """Wait until no process of a dead node is left; when that was."""
    while processes := node.processes():
        for pid in processes:
            wait_for_end(pid)
    return time.monotonic()


def cleaned(node: RealNode) -> None:
    """`atoll clean` on a dead node's folder."""
    words = [sys.executable, "-m", "atoll.microkernel", "clean", "--folder", str(node.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def nothing_left(node: RealNode) -> None:
    """Of a node that has ended, or was cleaned."""
    assert list(_left(node)) == []


def _left(node: RealNode) -> Iterator[str]:
    yield from (f"process {pid}" for pid in node.processes())
    yield from (f"mount {path}" for path in mounts_of(node))
    yield from (f"group {path}" for path in groups_of(node))
    if (node.folder / "attach.sock").exists():
        yield "its socket"


def checked(node: RealNode) -> None:
    """The store is whole; looked at beside a writer, too."""
    words = [sys.executable, "-m", "atoll.servers.state.check", str(node.folder / "data" / "state")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
