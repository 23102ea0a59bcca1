"""Swap after swap under a thousand calls a second, with streams that go on and calls that take long: no error, nothing
lost or doubled, and nothing is left behind."""

import os
import statistics
from pathlib import Path

import pytest

from atoll.ipc.system.kernel import Swap
from atoll.microkernel.remains import survivors

from .callers import called, called_steadily
from .nodes import RealNode, interface

Counter = interface("counter", "Counter")

GROWTH_MOST = 4 << 20
"""Bytes. Ten swaps are as many megabytes if a process or its table stays, and what allocators do is less."""


class Used:
    """What a process of the node uses, swap after swap."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.files: list[int] = []
        self.memory: list[int] = []

    def look(self) -> None:
        self.files.append(len(os.listdir(f"/proc/{self.pid}/fd")))
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))

    def flat(self, window: int) -> str:
        """The first and the last looks compared; says what was seen."""
        files = [statistics.median(part) for part in (self.files[:window], self.files[-window:])]
        memory = [statistics.median(part) for part in (self.memory[:window], self.memory[-window:])]
        said = (
            f"descriptors {files[0]:g} and {files[1]:g}, resident {memory[0]:,.0f} and {memory[1]:,.0f} bytes"
        )
        assert files[1] <= files[0] + 1, said
        assert memory[1] <= memory[0] + GROWTH_MOST, said
        return said


def zygote(node: RealNode, kernel: int) -> int:
    """Who makes the node's processes; those have its command line, and other parents than the kernel."""
    return next(
        each.pid
        for each in survivors(f"atoll-node={node.folder}")
        if each.command[3].endswith("zygote") and parent(each.pid) == kernel
    )


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("times", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_swaps_in_a_row_under_load_leave_nothing_behind(node: RealNode, times: int) -> None:
    assert node.kernel is not None
    kernel = node.kernel.pid
    used = {"kernel": Used(kernel), "zygote": Used(zygote(node, kernel))}
    pauses = []
    with node.attach() as attached, called_steadily(node) as told, called(node, ("server", "stream", "long")):
        for _ in range(3):
            attached.kernel.swap.now(Swap(server="counter"))
        caps = len(attached.kernel.caps.now())
        for _ in range(times):
            pauses.append(attached.kernel.swap.now(Swap(server="counter")).pause)
            for each in used.values():
                each.look()
        assert len(attached.kernel.caps.now()) == caps
    (steady,) = told
    waits = [pause * 1e3 for pause in pauses]
    print(
        f"{steady.calls / steady.seconds:,.0f} calls a second, {times} swaps, each a pause of "
        f"{statistics.median(waits):.0f} ms, the longest {max(waits):.0f} ms"
    )
    for name, each in used.items():
        print(f"{name}: {each.flat(max(1, times // 10))}")
    assert len(node.processes()) == 5
