"""Clock, chance, and work that would hold up the loop."""

import pytest
import trio

from .hosts import Host, as_kernel

NAPS = (0.0, 0.0001, 0.003, 0.02)
"""Seconds."""


@as_kernel
async def test_the_clock_never_falls_and_a_sleep_is_no_shorter_than_asked(host: Host) -> None:
    clock = host.mechanisms.clock
    last = clock.monotonic()
    for nap in NAPS * 3:
        for _ in range(50):
            now = clock.monotonic()
            assert now >= last
            last = now
        await clock.sleep(nap)
        assert clock.monotonic() - last >= int(nap * 1e9)


@as_kernel
async def test_others_go_on_while_one_sleeps_and_the_shorter_sleep_ends_first(host: Host) -> None:
    clock, woke = host.mechanisms.clock, []

    async def nap(seconds: float) -> None:
        await clock.sleep(seconds)
        woke.append(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(nap, 0.2)
        nursery.start_soon(nap, 0.001)
        await trio.testing.wait_all_tasks_blocked()
    assert woke == [0.001, 0.2]


@as_kernel
async def test_a_sleep_can_be_given_up(host: Host) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await host.mechanisms.clock.sleep(1e6)
    assert scope.cancelled_caught


@as_kernel
async def test_the_time_of_day_is_in_seconds_since_the_epoch(host: Host) -> None:
    before = host.mechanisms.clock.now()
    await host.mechanisms.clock.sleep(0.001)
    assert 1_600_000_000 < before < 4_000_000_000
    assert isinstance(before, float)
    assert host.mechanisms.clock.now() != before


@as_kernel
async def test_chance_gives_what_is_asked_for_and_nothing_twice(host: Host) -> None:
    chance = host.mechanisms.chance
    assert [len(chance.token(size)) for size in (0, 1, 8, 16, 1000)] == [0, 1, 8, 16, 1000]
    assert len({chance.token(16) for _ in range(200)}) == 200
    drawn = [chance.jitter() for _ in range(200)]
    assert all(0.0 <= each <= 1.0 for each in drawn)
    assert len(set(drawn)) > 100


@as_kernel
async def test_work_beside_the_loop_gives_its_result_or_its_error(host: Host) -> None:
    threads = host.mechanisms.threads
    assert await threads.run(lambda: 6 * 7) == 42
    fault = LookupError("nothing there")

    def fail() -> None:
        raise fault

    with pytest.raises(LookupError) as caught:
        await threads.run(fail)
    assert caught.value is fault


@as_kernel
async def test_work_that_was_given_up_before_is_not_begun(host: Host) -> None:
    begun: list[bool] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await host.mechanisms.threads.run(lambda: begun.append(True))
    assert scope.cancelled_caught
    assert not begun


@as_kernel
async def test_work_that_has_begun_is_heard_to_its_end_though_given_up(host: Host) -> None:
    """What it did is done: its result is not lost."""
    loop = trio.lowlevel.current_trio_token()
    heard: list[str] = []
    with trio.CancelScope() as scope:

        def work() -> str:
            loop.run_sync_soon(scope.cancel)
            return "done"

        heard.append(await host.mechanisms.threads.run(work))
        await trio.lowlevel.checkpoint()
    assert heard == ["done"]
    assert scope.cancelled_caught


@as_kernel
async def test_several_works_go_beside_one_another(host: Host) -> None:
    found: set[int] = set()

    async def work(number: int) -> None:
        found.add(await host.mechanisms.threads.run(lambda: number))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(work, number)
    assert found == set(range(5))
