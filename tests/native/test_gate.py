"""The gate: a process whose gate is closed and whose window was seen closed begins nothing until it is opened.

That is what freezing rests on: a revocation does not wait for a frozen process, so it must not stand between check and
handler.
"""

import mmap
import os
import time
from bisect import bisect_right

import pytest

from atoll.native import lib
from tests.kit.forked import forked
from tests.kit.serving import Memory, Serving, serving

from .suite import Server, Target

SERVED = 10
"""Of the status segment's words: calls handed to plain handlers."""
LOOKS = 400
ROOM = 1 << 20


def storm(served: Serving, memory: Memory, method: str, begun: "memoryview[int]") -> None:
    """Calls without end; the first word counts them, the others say when each handler began."""
    target = served.bind(memory, Target, served.grant(memory, Target))
    call = getattr(target, method)
    while begun[0] < ROOM - 8:
        for future in [call.start() for _ in range(4)]:
            count = begun[0] + 1
            begun[count] = future.result().time
            begun[0] = count


@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("method", ["begin", "begin_async"])
def test_nothing_begins_behind_a_closed_gate(method: str, times: int) -> None:
    begun = memoryview(mmap.mmap(-1, 8 * ROOM)).cast("Q")
    opened: list[tuple[int, int]] = []
    with serving(Server, clients=1) as served:
        memory = served.add_channel()
        window, status, notice = lib.atoll_status_window, served.status.c, served.server_notice.c
        with forked(lambda: storm(served, memory, method, begun)):
            for _ in range(times):
                before = begun[0]
                while begun[0] == before:
                    os.sched_yield()
                lib.atoll_notice_gate(notice, 1)
                while window(status) & 1:
                    os.sched_yield()
                served_then = served.status.words[SERVED]
                # Only a handler whose window was closed before may begin now. One whose window opens has to close it
                # again and wait: a handler that began after such a look began behind the gate.
                seen = [time.monotonic_ns() for _ in range(LOOKS) if window(status) & 1]
                if seen:
                    opened.append((seen[0], time.monotonic_ns()))
                assert served.status.words[SERVED] == served_then, (
                    "a call was handed out behind a closed gate"
                )
                lib.atoll_notice_gate(notice, 0)
        assert served.proxies[0].double.now(1) == 2
    starts = sorted(begun[1 : begun[0] + 1])
    assert starts
    late = [
        at for since, until in opened if (at := bisect_right(starts, since)) != bisect_right(starts, until)
    ]
    assert not late, f"{len(late)} handlers began behind a closed gate"
