"""Revocation in a storm of calls: once `revoke` has returned, no call is served any more.

What "after" means is exact, not a matter of clocks: a handler reports the pass of the receive loop in which it began
(`heartbeat` counts them), and `revoke` returns the pass count it found when it was done. A call that was dispatched
before is in hand and may go on; nothing begins in a later pass.
"""

import mmap
import os

import pytest

from atoll.ipc.errors import Revoked
from atoll.ipc.system.control import Port
from atoll.native import lib
from tests.kit.forked import forked
from tests.kit.serving import Memory, Serving, serving

from .suite import Server, Target

GENERATION, STARTED, DONE, LAST = range(4)
BATCH = 8
SLOT = 700


def grant(served: Serving, memory: Memory, generation: int) -> Port:
    lib.atoll_entry_write(served.table.c, SLOT, memory.number, generation, 3, 9, 0, 0, 0, 5000 + generation)
    return Port(
        channel=memory.number, slot=SLOT, generation=generation, interface="Target", rights=("read", "write")
    )


def storm(served: Serving, memory: Memory, words: "memoryview[int]") -> None:
    """The client: calls as fast as it can until it is refused, then tells when the last one began."""
    generation = 0
    while True:
        while words[GENERATION] == generation:
            os.sched_yield()
        generation = words[GENERATION]
        port = Port(channel=memory.number, slot=SLOT, generation=generation, interface="Target", rights=())
        target = served.bind(memory, Target, port)
        method = target.begin if generation % 2 else target.begin_async
        last = 0
        refused = False
        while not refused:
            for future in [method.start() for _ in range(BATCH)]:
                try:
                    last = max(last, future.result().beat)
                except Revoked:
                    refused = True
            words[STARTED] = generation
        words[LAST] = last
        words[DONE] = generation


@pytest.mark.parametrize("times", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_nothing_is_served_after_revoke_has_returned(times: int) -> None:
    shared = mmap.mmap(-1, 4096)
    words = memoryview(shared).cast("Q")
    with serving(Server, clients=1) as served:
        memory = served.add_channel()
        with forked(lambda: storm(served, memory, words)):
            for generation in range(1, times + 1):
                port = grant(served, memory, generation)
                words[GENERATION] = generation
                while words[STARTED] != generation:
                    os.sched_yield()
                beat = served.revoke(port)
                while words[DONE] != generation:
                    os.sched_yield()
                late = words[LAST] - beat
                assert late <= 0, f"revocation {generation}: a call began {late} passes later"
                if generation % 20 == 0:
                    served.observe()
        assert served.proxies[0].double.now(1) == 2
        served.observe()
        assert sum(refused.count for refused in served.refused) >= times
        assert {refused.why for refused in served.refused} == {"generation"}
        assert served.stop() == 0


def test_revoking_one_capability_leaves_the_others() -> None:
    with serving(Server, clients=2) as served:
        memory = served.channels[0]
        port = served.grant(memory, Target)
        mine = served.bind(memory, Target, port)
        assert mine.double.now(1) == 2
        served.revoke(port)
        with pytest.raises(Revoked):
            mine.double.now(1)
        assert [p.double.now(1) for p in served.proxies] == [2, 2]


def test_what_waits_in_the_ring_when_it_is_revoked_is_not_served() -> None:
    with serving(Server, clients=1) as served:
        memory = served.channels[0]
        port = served.grant(memory, Target)
        mine = served.bind(memory, Target, port)
        served.drain()
        waiting = [mine.double.start(number) for number in range(20)] + [mine.begin_async.start()]
        served.revoke(port)
        served.resume()
        for future in waiting:
            with pytest.raises(Revoked):
                future.result()
