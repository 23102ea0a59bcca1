"""Swap after swap under a thousand calls a second, with streams that go on and calls that take long: no error, nothing
lost or doubled, and nothing is left behind."""

import os
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from atoll.ipc.system.kernel import Swap
from atoll.microkernel.remains import survivors

from .callers import RATE, called, called_steadily
from .nodes import RealNode, interface

Counter = interface("counter", "Counter")

NOISE = 1 << 20
"""Bytes that come and go with what is in hand."""
GROWTH_MOST = 2 << 10
"""Bytes a swap beyond that: half of the least that a leak would be, one page a swap."""
KEPT_UP = 0.95 * RATE
"""Calls a second, where no other test runs beside it: who is behind after a pause catches up, so little is lost."""
OWN = ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")
"""Memory that no file explains: the store's file is mapped, and grows."""


class Used:
    """What a process of the node uses, swap after swap; of a server that is swapped, one process after the other."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self.memory: list[int] = []

    def look(self, pid: int) -> None:
        self.files.append(len(os.listdir(f"/proc/{pid}/fd")))
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(size) for name, size, _ in map(str.split, lines)}
        self.memory.append(sum(sizes[name] for name in OWN) << 10)

    def flat(self, window: int) -> str:
        """The first and the last looks compared; says what was seen."""
        files = [statistics.median(part) for part in (self.files[:window], self.files[-window:])]
        memory = [statistics.median(part) for part in (self.memory[:window], self.memory[-window:])]
        said = (
            f"descriptors {files[0]:g} and {files[1]:g}, memory {memory[0]:,.0f} and {memory[1]:,.0f} bytes"
        )
        assert files[1] <= files[0] + 1, said
        assert memory[1] <= memory[0] + NOISE + GROWTH_MOST * len(self.memory), said
        return said


def helpers(node: RealNode) -> dict[str, int]:
    """Who makes the node's processes, and who hears what is refused to them. What the first makes has its command line, and
    began later."""
    found = sorted(survivors(f"atoll-node={node.folder}"), key=lambda each: (each.started, each.pid))
    return {
        name: next(each.pid for each in found if each.command[3].endswith(name))
        for name in ("zygote", "watcher")
    }


@pytest.mark.parametrize(("times", "least"), [(10, 0.0), pytest.param(1000, KEPT_UP, marks=pytest.mark.soak)])
def test_swaps_in_a_row_under_load_leave_nothing_behind(node: RealNode, times: int, least: float) -> None:
    """`least`: calls a second that the steady caller was answered all the while."""
    assert node.kernel is not None
    kernel = node.kernel.pid
    pids = {"kernel": kernel} | helpers(node)
    used = defaultdict[str, Used](Used)
    pauses = []
    with node.attach() as attached, called_steadily(node) as told, called(node, ("server", "stream", "long")):
        for _ in range(3):
            attached.kernel.swap.now(Swap(server="counter"))
        caps = len(attached.kernel.caps.now())
        for _ in range(times):
            pauses.append(attached.kernel.swap.now(Swap(server="counter")).pause)
            pids |= {row.server: row.pid for row in attached.kernel.ps.now()}
            for name, pid in pids.items():
                used[name].look(pid)
        assert len(attached.kernel.caps.now()) == caps
    (steady,) = told
    waits = [pause * 1e3 for pause in pauses]
    rate = steady.calls / steady.seconds
    print(
        f"{rate:,.0f} calls a second, of which one waited {steady.longest * 1e3:.0f} ms; "
        f"{times} swaps, each a pause of {statistics.median(waits):.0f} ms, the longest {max(waits):.0f} ms"
    )
    assert {kernel, *node.processes()} == set(pids.values()), pids
    for name, each in used.items():
        print(f"{name}: {each.flat(max(1, times // 10))}")
    assert rate >= least, "the swaps were not made under the load that they are about"


def test_a_page_that_is_lost_at_each_of_a_thousand_swaps_is_seen() -> None:
    used = Used()
    used.files = [7] * 1000
    used.memory = [(4 << 20) + 4096 * swap for swap in range(1000)]
    with pytest.raises(AssertionError, match="memory"):
        used.flat(100)
