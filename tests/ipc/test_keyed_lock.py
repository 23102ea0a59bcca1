"""One at a time, by key: also where somebody who waits is cancelled as the one before ends."""

import pytest
import trio
import trio.testing

from atoll.ipc.keyed_lock import KeyedLock


async def test_one_key_waits_for_itself_and_for_no_other() -> None:
    locks, inside = KeyedLock[str](), list[str]()

    async def enter(key: str) -> None:
        async with locks.holding(key):
            inside.append(key)

    async with trio.open_nursery() as others, locks.holding("a"):
        others.start_soon(enter, "a")
        others.start_soon(enter, "b")
        await trio.testing.wait_all_tasks_blocked()
        assert inside == ["b"]
    assert inside == ["b", "a"]
    assert len(locks) == 0


async def test_who_is_cancelled_takes_nobodys_turn_away() -> None:
    """It came to its end when the key had another lock, and took that: whoever came next did not wait."""
    locks, inside = KeyedLock[str](), list[str]()

    async def stay(name: str) -> None:
        async with locks.holding("key"):
            inside.append(name)
            await trio.sleep_forever()

    async with trio.open_nursery() as others:
        cancelled = trio.CancelScope()

        async def wait() -> None:
            with cancelled:
                await stay("cancelled")

        async with locks.holding("key"):
            others.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            cancelled.cancel()
        async with locks.holding("key"):
            await trio.testing.wait_all_tasks_blocked()
            others.start_soon(stay, "next")
            await trio.testing.wait_all_tasks_blocked()
            assert inside == []
        await trio.testing.wait_all_tasks_blocked()
        assert inside == ["next"]
        others.cancel_scope.cancel()
    assert len(locks) == 0


async def test_a_block_that_fails_lets_the_next_in() -> None:
    locks = KeyedLock[int]()
    with pytest.raises(ValueError, match="in the block"):
        async with locks.holding(1):
            raise ValueError("in the block")
    assert len(locks) == 0
    async with locks.holding(1):
        assert len(locks) == 1
