"""A storage server that dies at a chosen system call: `python -m tests.servers.storage.dying FOLDER`.

Each system call that changes a file or makes one durable is a step. For each step a child is forked that
does the same work in a folder of its own and is killed just before that step; the last child does all of
it. A child writes what was acknowledged, and what steps there were, into `FOLDER/<step>.told`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.ipc import testing
from atoll.ipc.testing import VirtualClock
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server, Settings
from tests.kit.forked import forked

GRACE = 100.0
LARGE = {name: name.encode() * 70_000 for name in ("large", "waste")}
SMALL = {f"small {number}": f"small {number}".encode() for number in range(6)}
CONTENTS = LARGE | SMALL
KEPT = ["large", "small 0", "small 1", "small 4"]
"""What is referred to, so that it must outlive the collection."""

CALLS = ("write", "fsync", "link", "replace", "unlink")


class Steps:
    """Counts the system calls from now on, tells each, and ends the process before number `last`."""

    def __init__(self, last: int, tell: Callable[[str], None]) -> None:
        self._count = 0
        self._last = last
        self._tell = tell
        for name in CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            self._count += 1
            if self._count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            result = real(first, *rest, **named)
            self._tell(" ".join((name, path, *map(str, rest if name in ("link", "replace") else ()))))
            return result

        return call


def work(storage: Storage, clock: VirtualClock, acknowledged: Callable[[str], None]) -> None:
    """Puts of every kind, references, and a collection that removes a file and a pack and rewrites two."""
    for name, content in LARGE.items():
        storage.put.now([content[:100_000], content[100_000:]])
        acknowledged(name)
    for names in (("small 0", "small 2", "small 3"), ("small 1",), ("small 4",), ("small 5",)):
        storage.put_many.now([SMALL[name] for name in names])
        for name in names:
            acknowledged(name)
    storage.refer.now(
        [ref.hash for ref in storage.put_many.now([SMALL[name] for name in KEPT[1:]])], "o", "small"
    )
    storage.refer.now([storage.put.now([LARGE["large"]]).hash], "o", "large")
    clock.advance(GRACE + 1)
    acknowledged("everything")
    storage.collect.now()
    acknowledged("collected")


def child(folder: Path, last: int) -> None:
    told = os.open(folder.with_suffix(".told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write, clock = os.write, VirtualClock()

    def tell(line: str) -> None:
        write(told, f"{line}\n".encode())

    with testing.node(
        Server, config=Settings(grace=GRACE, collect_every=0.0), needs={"folder": folder}, clock=clock
    ) as storage:
        Steps(last, tell)
        work(storage, clock, lambda name: tell(f"acknowledged {name}"))


def main(base: Path) -> None:
    """Until a child got through."""
    step = 1
    while True:
        folder = base / f"{step:04d}"
        folder.mkdir()
        with forked(lambda folder=folder, step=step: child(folder, step)) as pid:  # type: ignore[misc]
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if ended.si_status != signal.SIGKILL:
            sys.exit(ended.si_status)
        step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
