"""No wake-up is lost: two processes hand one token to and fro, each pausing at random so that every interleaving of
"last look" and "sleep" comes up. A lost one would leave both asleep; the run's time limit is the watchdog."""

import os
import random
import select

import pytest

from tests.kit.serving import serving

from .suite import Server

SHORT = 100_000
PAUSES = 300
"""Turns of an empty loop at most: up to some tens of microseconds, around the time at which the other end parks."""


def pause(chance: random.Random) -> None:
    match chance.randrange(8):
        case 0:
            os.sched_yield()
        case 1 | 2:
            for _ in range(chance.randrange(PAUSES)):
                pass


@pytest.mark.parametrize("cores", ["together", "apart"])
@pytest.mark.parametrize("times", [SHORT // 10, pytest.param(SHORT, marks=pytest.mark.soak)])
def test_a_thread_on_the_futex_and_a_server_in_its_epoll_never_both_sleep(times: int, cores: str) -> None:
    available = sorted(os.sched_getaffinity(0))
    if cores == "apart" and len(available) < 2:
        pytest.skip("one core: the two ends cannot run apart")
    before = os.sched_getaffinity(0)
    with serving(Server, core=available[0]) as served:
        os.sched_setaffinity(0, {available[0 if cores == "together" else -1]})
        try:
            chance = random.Random(1)
            double = served.proxies[0].double.now
            for number in range(times):
                assert double(number) == number * 2
                pause(chance)
        finally:
            os.sched_setaffinity(0, before)


@pytest.mark.parametrize("times", [SHORT // 2, pytest.param(SHORT * 10, marks=pytest.mark.soak)])
def test_a_client_on_its_doorbell_never_misses_a_ring(times: int) -> None:
    """As event loops wait: arm, look, sleep without a limit. Nothing but the doorbell ends that sleep."""
    with serving(Server) as served:
        channel = served.client(served.channels[0])
        bell = select.epoll()
        bell.register(channel.doorbell, select.EPOLLIN)
        chance = random.Random(2)
        double = served.proxies[0].double.start
        slept = 0
        for number in range(times):
            future = double(number)
            pause(chance)
            while not future.done():
                if channel.arm():
                    bell.poll()
                    slept += 1
                channel.look()
            assert future.result() == number * 2
        bell.close()
        assert slept


def test_two_processes_on_raw_channels_hand_over_the_token_both_ways() -> None:
    """Producer and consumer park on futex and doorbell in turn, chosen at random a message."""
    with serving(Server) as served:
        channel = served.client(served.channels[0])
        chance = random.Random(3)
        double = served.proxies[0].double
        for number in range(20_000):
            if chance.random() < 0.5:
                assert double.now(number) == number * 2
                continue
            future = double.start(number)
            if chance.random() < 0.5 and channel.arm():
                select.select([channel.doorbell], [], [])
            channel.look()
            assert future.result() == number * 2


IDLE = 500


def test_500_idle_channels_cost_no_pass_of_the_loop() -> None:
    """The loop sleeps once and is not woken: its passes and its parks stay where they were while others work."""
    import resource

    from atoll.ipc.system.control import Shape

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * IDLE + 200
    if hard < wanted and hard != resource.RLIM_INFINITY:
        pytest.skip(f"{IDLE} channels need {wanted} descriptors, and {hard} are allowed: raise `ulimit -n`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with serving(Server, clients=IDLE, shape=Shape(ring_bits=12, bulk_bits=12)) as served:
            assert [p.double.now(1) for p in served.proxies] == [2] * IDLE
            first = served.proxies[0]
            parks, beats = first.parks.now(), served.heartbeat()
            with serving(
                Server
            ) as other:  # work of somebody else, long enough for a spinning loop to be seen
                for number in range(2000):
                    other.proxies[0].double.now(number)
            assert served.heartbeat() - beats <= 2
            assert first.parks.now() - parks <= 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
