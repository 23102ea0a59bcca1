"""A commit is told to those watchers whose prefix a key of it has, whoever came and went, and to nobody else; by a process
that follows the feed, too, whatever has left it."""

from typing import Any, cast

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from atoll.ipc.system.state import Compacted, Retention, Write
from atoll.servers.state import layout
from atoll.servers.state.history import History
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


class Followed:
    """A store of two keyspaces, of which the first gives up its past, and watchers of a process that only reads."""

    def __init__(self) -> None:
        engine = MemoryEngine()
        self._kept = Kept(lambda: engine)
        self._states = [
            self._kept.keyspace_state("one", Retention(age=0.0)),
            self._kept.keyspace_state("two"),
        ]
        self._history = History(engine, str)
        self._watchers = Watchers(self._history)
        self.written: list[tuple[int, bytes]] = []

    def write(self, keyspace: int, key: bytes, value: bytes | None = b"") -> int:
        revision = self._states[keyspace - 1].commit.start([Write(key, value)]).result().revision
        self.written.append((revision, layout.prefix(keyspace) + key))
        return revision

    def delete(self, keyspace: int, key: bytes) -> None:
        self.write(keyspace, key, None)

    def compact(self) -> None:
        """All is old, and has been replaced by something that is older than what comes next."""
        self._kept.hands.now += 1000
        self.write(1, b"other")
        self._kept.compact()

    def follow(self) -> None:
        while self._watchers.follow():
            pass

    def listener(self, prefix: bytes) -> "Listener":
        return Listener(self._watchers, self._history.head(), prefix)


class Listener:
    def __init__(self, watchers: Watchers, since: int, prefix: bytes) -> None:
        self._watchers = watchers
        self.since = since
        self.prefix = prefix
        self.heard: list[int] = []
        self.gone = False

    async def listen(self) -> None:
        try:
            async for change in self._watchers.watch(self.since, self.prefix, past=True):
                self.heard.append(change.revision)
        except Compacted:
            self.gone = True


async def test_what_was_given_up_before_a_reader_looked_is_not_passed_over() -> None:
    store = Followed()
    mine, theirs = (store.listener(layout.prefix(keyspace) + b"p") for keyspace in (1, 2))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine.listen)
        nursery.start_soon(theirs.listen)
        await wait_all_tasks_blocked()
        store.write(1, b"p")
        store.delete(1, b"p")  # of which no event is left, either
        store.compact()
        store.write(1, b"p")
        revision = store.write(2, b"p")
        store.follow()
        await wait_all_tasks_blocked()
        assert (mine.heard, mine.gone) == ([], True)
        assert (theirs.heard, theirs.gone) == ([revision], False)
        nursery.cancel_scope.cancel()


KEYSPACES = st.sampled_from([1, 2])
STEPS = st.one_of(
    st.tuples(st.sampled_from(["write", "delete"]), KEYSPACES, st.sampled_from([b"p", b"q"])),
    st.tuples(st.just("listen"), KEYSPACES, st.sampled_from([b"", b"p"])),
    st.sampled_from([("follow",), ("compact",), ("run",)]),
)


@given(st.lists(STEPS, max_size=30))
def test_whoever_listens_at_a_reader_hears_all_in_order(steps: list[tuple[Any, ...]]) -> None:
    trio.run(_listen, steps)


async def _listen(steps: list[tuple[Any, ...]]) -> None:
    store, listeners = Followed(), list[Listener]()
    async with trio.open_nursery() as nursery:
        for step, *arguments in steps:
            if step == "listen":
                keyspace, beginning = arguments
                listeners.append(store.listener(layout.prefix(keyspace) + beginning))
                nursery.start_soon(listeners[-1].listen)
            elif step == "run":
                await wait_all_tasks_blocked()
            else:
                getattr(store, step)(*arguments)
        store.follow()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for each in listeners:
        due = [
            revision
            for revision, key in store.written
            if revision > each.since and key.startswith(each.prefix)
        ]
        assert each.heard == (due[: len(each.heard)] if each.gone else due)
        assert not (each.gone and layout.keyspace_of(each.prefix) == 2)
