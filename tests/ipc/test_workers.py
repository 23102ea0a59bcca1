"""Worker processes: real forks, real deaths."""

import os
import signal

import pytest
import trio
import trio.testing

from atoll.ipc import discretion
from atoll.ipc.errors import InternalFault, Overloaded, PeerDied
from atoll.ipc.runtime.workers import Workers


def square(number: int) -> int:
    return number * number


def who() -> int:
    return os.getpid()


def wrong() -> None:
    raise ValueError("no such number")


def refuse(text: str) -> None:
    raise ValueError(text)


def fatal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def endless() -> None:
    while True:
        signal.pause()


async def test_work_runs_in_other_processes() -> None:
    workers = Workers(2)
    try:
        assert await workers.run(square, 12) == 144
        assert await workers.run(who) != os.getpid()
    finally:
        workers.close()


async def test_an_error_says_what_was_raised_and_the_worker_goes_on() -> None:
    workers = Workers(1)
    try:
        with pytest.raises(InternalFault, match="ValueError: no such number"):
            await workers.run(wrong)
        assert await workers.run(square, 3) == 9
    finally:
        workers.close()


async def test_of_a_private_server_an_error_says_its_type_and_where(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its text, which may quote what people said, was in the log and in the caller's error."""
    monkeypatch.setattr(discretion, "_quiet", True)
    workers = Workers(1)
    try:
        with pytest.raises(InternalFault, match="which raised ValueError: this is a bug") as caught:
            await workers.run(refuse, "what they said")
    finally:
        workers.close()
    printed = capfd.readouterr().err
    assert "in refuse" in printed and "its text may be private" in printed
    assert "what they said" not in printed + str(caught.value)


async def test_a_dead_worker_is_told_and_replaced() -> None:
    workers = Workers(1)
    try:
        with pytest.raises(PeerDied):
            await workers.run(fatal)
        assert await workers.run(square, 4) == 16
    finally:
        workers.close()


async def test_a_cancelled_call_ends_its_worker() -> None:
    workers = Workers(1)
    try:
        before = await workers.run(who)
        with trio.move_on_after(0.05) as scope:
            await workers.run(endless)
        assert scope.cancelled_caught
        after = await workers.run(who)
        assert after != before
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
    finally:
        workers.close()


async def test_a_worker_that_cannot_be_replaced_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice has no process left for a while: the place of the dead one was lost, and its callers waited for ever."""

    def no_process() -> int:
        raise BlockingIOError("there are as many as the slice may have")

    workers = Workers(1)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fork", no_process)
            with pytest.raises(PeerDied):
                await workers.run(fatal)
            with pytest.raises(Overloaded):
                await workers.run(square, 5)
        assert workers._free.statistics().current_buffer_used == 1
        assert await workers.run(square, 5) == 25
    finally:
        workers.close()


async def test_work_that_is_in_hand_or_waits_when_all_are_ended_is_told() -> None:
    """What was in hand failed over a list; who waited got a worker of their own, which nobody ended any more."""
    workers = Workers(1)
    told: list[Exception] = []

    async def asks() -> None:
        try:
            await workers.run(endless)
        except Exception as error:
            told.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asks)
        nursery.start_soon(asks)
        await trio.testing.wait_all_tasks_blocked()
        workers.close()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in told] == [PeerDied, PeerDied]
    assert not workers._all
