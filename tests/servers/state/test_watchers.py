"""A commit is told to those watchers whose prefix a key of it has, whoever came and went, and to nobody else."""

from typing import Any, cast

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from atoll.ipc.system.state import Retention, Write
from atoll.servers.state import layout
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.watchers import BEHIND, Watchers

from .kept import Kept

WORDS = st.binary(max_size=3).map(lambda word: bytes(byte % 3 for byte in word))


def watchers() -> Watchers:
    return Watchers(cast(Any, None))  # its history is read by who watches, not by who announces


@given(st.lists(WORDS), st.lists(st.integers(0, 20)), st.lists(st.lists(WORDS, min_size=1, max_size=4)))
def test_those_are_told_whose_prefix_a_key_has(
    prefixes: list[bytes], gone: list[int], commits: list[list[bytes]]
) -> None:
    made = watchers()
    there = [made.add(prefix) for prefix in prefixes]
    for number in gone:
        if number < len(there):
            made.remove(there.pop(number))
    made.announce(list(enumerate(commits)))
    for watcher in there:
        assert list(watcher.due) == [
            revision
            for revision, keys in enumerate(commits)
            if any(key.startswith(watcher.prefix) for key in keys)
        ]
    assert len(made) == len(there)
    for watcher in there:
        made.remove(watcher)
    assert len(made) == 0 and not made._of and not made._lengths


class Key(bytes):
    """Counts how often it is looked at."""

    looks = 0

    def __getitem__(self, part: Any) -> Any:
        Key.looks += 1
        return super().__getitem__(part)


def test_a_commit_costs_nothing_for_watchers_of_other_keys() -> None:
    made = watchers()
    for number in range(1000):
        made.add(b"\0\0\0\1other/%04d" % number)
    made.announce([(1, [Key(b"\0\0\0\1mine")])])
    assert Key.looks == 1


def test_one_that_takes_nothing_is_behind_and_holds_no_more() -> None:
    made = watchers()
    slow = made.add(b"")
    made.announce([(revision, [b"key"]) for revision in range(BEHIND)])
    assert not slow.behind
    made.announce([(BEHIND, [b"key"])])
    assert slow.behind and len(slow.due) == BEHIND


async def test_one_that_had_nothing_to_hear_for_long_falls_behind_and_misses_nothing() -> None:
    """The past was given up beyond what it heard last, in which nothing was written that it watches."""
    engine = MemoryEngine()
    kept = Kept(lambda: engine)
    state = kept.keyspace_state("one", Retention(age=0.0))
    begun = state.commit.start([Write(b"p", b"")]).result().revision
    heard: list[int] = []

    async def listen() -> None:
        async for change in kept.server._watchers.watch(begun, layout.prefix(1) + b"p", past=True):
            heard.append(change.revision)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        for _ in range(3):
            state.commit.start([Write(b"other", b"")]).result()
        kept.hands.now += 1000
        state.commit.start([Write(b"other", b"")]).result()
        kept.compact()
        assert state.horizon.start().result().revision > begun
        written = [state.commit.start([Write(b"p", b"")]).result().revision for _ in range(BEHIND + 1)]
        await wait_all_tasks_blocked()
        assert heard == written
        nursery.cancel_scope.cancel()
