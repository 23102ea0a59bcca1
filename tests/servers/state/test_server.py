"""The store as its callers see it: keyspaces, rights, groups, transactions, watches, over real LMDB."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from atoll.ipc.errors import Aborted, BadRequest, CallerFault, Conflict, Failure, NotAllowed, NotFound
from atoll.ipc.serve import bind
from atoll.ipc.system.state import Ahead, Expect, Range, State, UnknownTransaction, Write, absolute
from atoll.servers.state.history import PAGE_BYTES
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server
from atoll.servers.state.watchers import BEHIND

from .direct import Node

ALL = {"read", "write", "history", "admin"}


@asynccontextmanager
async def serving(folder: Path, **options: object) -> AsyncIterator[tuple[Node, State]]:
    """A store and the kernel's capability on it."""
    endpoint = bind(Server, {"config": Settings(folder=str(folder), map_size=1 << 30, **options)})  # type: ignore[arg-type]
    await endpoint.server.start()
    node = Node(endpoint)
    try:
        yield node, node.proxy(State, 0, ALL)
    finally:
        await endpoint.server.stop()


@pytest.fixture
def folder(tmp_path: Path, whole: Callable[[Path], int]) -> "AsyncIterator[Path]":
    yield tmp_path / "store"  # type: ignore[misc]
    whole(tmp_path / "store")


async def test_a_keyspace_is_a_world_of_its_own(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        one, two = await kernel.make_keyspace("one"), await kernel.make_keyspace("two")
        assert await kernel.make_keyspace("one") == one != two
        first, second = node.proxy(State, one, ALL), node.proxy(State, two, ALL)
        await first.commit([Write(b"k", b"1"), Write(b"", b"empty")])
        await second.commit([Write(b"k", b"2")])
        assert [(item.key, item.value) for item in (await first.range(b"")).items] == [
            (b"", b"empty"),
            (b"k", b"1"),
        ]
        item = await kernel.get(absolute(two, b"k"))
        assert item is not None
        assert item.value == b"2"
        assert (await kernel.keyspaces())["two"] == two
        with pytest.raises(NotAllowed):
            await first.make_keyspace("three")
        with pytest.raises(NotFound):
            await node.proxy(State, 99, ALL).commit([Write(b"k", b"1")])
        with pytest.raises(BadRequest):
            await kernel.commit([Write(b"short", b"1")])


async def test_the_past_needs_its_right(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        reader = node.proxy(State, badge, {"read"})
        historian = node.proxy(State, badge, {"read", "history"})
        first = await node.proxy(State, badge, ALL).commit([Write(b"k", b"1")], note="why")
        await node.proxy(State, badge, ALL).commit([Write(b"k", b"2")])
        item = await historian.get(b"k", first.revision)
        assert item is not None
        assert item.value == b"1"
        for call in (reader.get(b"k", first.revision), reader.range(b"", as_of=1.0), reader.history(b"k")):
            with pytest.raises(NotAllowed):
                await call
        who = await historian.who(first.revision)
        assert who is not None
        assert (who.keyspace, who.note) == ("one", "why")


async def test_a_watch_shows_the_past_only_with_its_right(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store = node.proxy(State, badge, ALL)
        await store.commit([Write(b"k", b"old"), Write(b"gone", b"secret")], note="past")
        await store.commit([Write(b"gone")])
        await store.commit([Write(b"k", b"new"), Write(b"same", b"1")], note="present")
        told = {}
        for rights in ({"read"}, {"read", "history"}):
            feed = aiter(node.proxy(State, badge, rights).watch(0))
            told[len(rights)] = [await anext(feed) for _ in range(3)]
            # What was written again before anybody looked is the past, too.
            async with node.batch():
                store.commit.start([Write(b"k", b"passing")])
                store.commit.start([Write(b"k", b"last")])
            told[len(rights)] += [await anext(feed) for _ in range(2)]
            await feed.aclose()
        values = {n: [[item.value for item in change.items] for change in told[n]] for n in told}
        assert values[1] == [[b"new", None], [None], [b"new", b"1"], [b"last"], [b"last"]]
        assert values[2] == [[b"old", b"secret"], [None], [b"new", b"1"], [b"passing"], [b"last"]]
        assert [change.revision for change in told[1][:3]] == [change.revision for change in told[2][:3]]
        assert [change.provenance.note for change in told[1][:3]] == ["", "", "present"]
        assert told[2][0].provenance.note == "past"


async def test_a_read_as_of_a_time_gives_the_same_once_what_waited_is_durable(folder: Path) -> None:
    """A commit bears the time at which it was asked for, and is durable later."""
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store = node.proxy(State, badge, ALL)
        for ask in (
            lambda at: store.get(b"get", at),
            lambda at: store.range(b"range", as_of=at),
            store.revision_at,
        ):
            async with node.batch():
                store.commit.start([Write(b"get", b"1"), Write(b"range", b"1")])
                moment = time.time() + 1e-3
                while time.time() <= moment:
                    pass
                found = await ask(moment)
                store.commit.start([Write(b"get", b"2"), Write(b"range", b"2")])
            assert await ask(moment) == found


async def test_reading_in_a_transaction_needs_the_right_to_read(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        await node.proxy(State, badge, ALL).commit([Write(b"k", b"secret")])
        writer = node.proxy(State, badge, {"write"})
        transaction = await writer.begin(10.0)
        for call in (writer.read(transaction, b"k"), writer.scan(transaction, b"")):
            with pytest.raises(NotAllowed) as refused:
                await call
            assert refused.value.needed == "read"
        await writer.commit([Write(b"k", b"2")], transaction=transaction)
        assert (await writer.finish(transaction)).revision


async def test_calls_that_arrive_together_share_one_group(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        before = (await store.statistics())["groups"]
        async with node.batch():
            futures = [store.commit.start([Write(b"%d" % number, b"x")]) for number in range(50)]
            assert not any(future.done() for future in futures)
            assert (await store.range(b"")).items == []
        revisions = [future.result().revision for future in futures]
        assert revisions == list(range(revisions[0], revisions[0] + 50))
        assert (await store.statistics())["groups"] == before + 1


async def test_a_backup_begins_behind_all_that_was_asked_for(folder: Path) -> None:
    """What is still in the group bears an earlier time than the one at which the backup is said to have been begun."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        async with node.batch():
            asked = store.commit.start([Write(b"k", b"x")])
            outline = await node.proxy(State, 0, {"backup"}).outline()
        assert asked.result().revision == outline.head


@pytest.mark.parametrize("number", [-1, -(2**63), 2**63, 2**64 - 1])
async def test_no_number_is_a_fault_of_the_store(folder: Path, number: int) -> None:
    """What no revision can be is refused as a caller's mistake, or lies ahead."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL | {"pin"})
        await store.commit([Write(b"k", b"v")])
        transaction = await store.begin(10.0)

        async def feed(changes: AsyncIterator[object]) -> None:
            async for _ in changes:
                return

        for asked in (
            store.get(b"k", number),
            store.get(b"k", None, number),
            store.range(b"", as_of=number),
            store.who(number),
            store.pin("p", number),
            feed(aiter(store.watch(number))),
            feed(aiter(store.changes(number, 1))),
            feed(aiter(store.changes(0, number))),
            store.commit([Write(b"k", b"w")], [Expect(b"k", number)]),
            store.commit([Write(b"k", b"w")], [Range(b"", b"", number)]),
            store.commit([Write(b"k", b"w")], [Range(b"", b"", number)], transaction=transaction),
            store.undo(transaction, number),
        ):
            with suppress(CallerFault, Failure, Conflict):
                await asked
        for time in (-1.0, math.inf, -math.inf, math.nan, 1e300):
            with suppress(CallerFault, Failure):
                await store.get(b"k", time)
            with suppress(CallerFault, Failure):
                await store.revision_at(time)
        item = await store.get(b"k")
        assert item is not None and item.value == b"v"


async def test_changes_end_where_they_are_told_to(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store, other = (
            node.proxy(State, badge, ALL),
            node.proxy(State, await kernel.make_keyspace("two"), ALL),
        )
        first = await store.head()
        revisions = []
        for number in range(150):
            revisions.append((await store.commit([Write(b"k%d" % number, b"v")], note="why")).revision)
            await other.commit([Write(b"k", b"v")])
        last = await store.head()
        assert [change.revision async for change in store.changes(first, last)] == revisions
        some = [change async for change in store.changes(revisions[3], revisions[90])]
        assert [change.revision for change in some] == revisions[4:91]
        assert (some[0].items[0].key, some[0].provenance.keyspace, some[0].provenance.note) == (
            b"k4",
            "one",
            "why",
        )
        assert [change.revision async for change in store.changes(first, last, b"k14")] == [
            revisions[14], *revisions[140:150]
        ]  # fmt: skip
        assert [change async for change in store.changes(last, last)] == []
        with pytest.raises(Ahead):
            [change async for change in store.changes(first, last + 1)]
        with pytest.raises(NotAllowed):
            node.proxy(State, badge, {"read"}).changes(first, last)


async def test_a_watch_is_gap_free_over_restarts(folder: Path) -> None:
    seen: list[int] = []
    written: list[int] = []
    for life in range(3):
        async with serving(folder) as (node, kernel):
            badge = await kernel.make_keyspace("one")
            store, other = (
                node.proxy(State, badge, ALL),
                node.proxy(State, await kernel.make_keyspace("two"), ALL),
            )
            for number in range(100):
                await other.commit([Write(b"noise", b"%d" % number)])
                written.append((await store.commit([Write(b"k", b"%d" % number)])).revision)
            after = seen[-1] if seen else 0
            async for change in store.watch(after):
                seen.append(change.revision)
                if len(seen) == 60 + 200 * life:
                    written += [(await store.commit([Write(b"k", b"%d" % n)])).revision for n in range(100)]
                if len(seen) == 190 + 200 * life:
                    break
    assert seen == written[: len(seen)]


async def test_a_watcher_that_is_slow_misses_nothing(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        feed = aiter(store.watch(await store.head()))
        await store.commit([Write(b"k", b"first")])
        assert (await anext(feed)).items[0].value == b"first"
        async with node.batch():
            futures = [store.commit.start([Write(b"k", b"%d" % number)]) for number in range(3000)]
        values = [(await anext(feed)).items[0].value for _ in futures]
        assert values == [b"%d" % number for number in range(3000)]


async def test_a_watcher_that_falls_behind_is_told_so_and_can_go_on_elsewhere(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store = node.proxy(State, badge, ALL)
        feed = aiter(store.watch(await store.head()))
        await store.commit([Write(b"k", b"first")])
        assert (await anext(feed)).behind == 0
        async with node.batch():
            futures = [store.commit.start([Write(b"k", b"%d" % number)]) for number in range(4000)]
        (watcher,) = next(iter(node.endpoint.server._watchers._of.values()))  # type: ignore[attr-defined]
        assert len(watcher.due) <= BEHIND
        told = [await anext(feed) for _ in range(500)]
        assert [change.items[0].value for change in told] == [b"%d" % number for number in range(500)]
        last = futures[-1].result().revision
        assert told[-1].behind == last - told[-1].revision
        await feed.aclose()
        # As a new client, from where it was; each value is there once.
        async for change in store.watch(told[-1].revision):
            told.append(change)
            if change.revision == last:
                break
        assert [change.items[0].value for change in told] == [b"%d" % number for number in range(4000)]
        assert [change.behind for change in told][-BEHIND:] == [0] * BEHIND


async def test_a_watch_of_puts_or_of_deletions_is_told_of_no_others(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store = node.proxy(State, badge, ALL)
        await store.commit([Write(b"k1", b"1"), Write(b"other", b"1")])
        await store.commit([Write(b"k1"), Write(b"k2", b"2")])
        await store.commit([Write(b"k2"), Write(b"other")])
        await store.commit([Write(b"k3", b"3")])
        await store.commit([Write(b"k3", b"4"), Write(b"k4", b"4")])
        await store.commit([Write(b"k4")])
        feeds = {
            (only, len(rights)): aiter(node.proxy(State, badge, rights).watch(0, b"k", only))
            for only in ("puts", "deletes")
            for rights in ({"read"}, {"read", "history"})
        }
        told: dict[tuple[str, int], list[list[tuple[bytes, bytes | None]]]] = {each: [] for each in feeds}

        async def take(which: tuple[str, int], count: int) -> None:
            for _ in range(count):
                change = await anext(feeds[which])
                told[which].append([(item.key, item.value) for item in change.items])

        await take(("puts", 2), 4)
        await take(("deletes", 2), 3)
        assert told["puts", 2] == [
            [(b"k1", b"1")],
            [(b"k2", b"2")],
            [(b"k3", b"3")],
            [(b"k3", b"4"), (b"k4", b"4")],
        ]
        assert told["deletes", 2] == [[(b"k1", None)], [(b"k2", None)], [(b"k4", None)]]
        # Who may not see the past is told of what is there now.
        await take(("puts", 1), 2)
        await take(("deletes", 1), 5)
        assert told["puts", 1] == [[(b"k3", b"4")]] * 2
        gone = [[b"k1"], [b"k1", b"k2"], [b"k2"], [b"k4"], [b"k4"]]
        assert told["deletes", 1] == [[(key, None) for key in keys] for keys in gone]
        # And as it goes on.
        await store.commit([Write(b"k3"), Write(b"k5", b"5")])
        for which, feed in feeds.items():
            await take(which, 1)
            assert told[which][-1] == ([(b"k5", b"5")] if which[0] == "puts" else [(b"k3", None)])
            await feed.aclose()


async def test_what_a_watcher_has_in_hand_is_a_page(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("one")
        store = node.proxy(State, badge, ALL)
        for _ in range(10):
            await store.commit([Write(b"k", bytes(PAGE_BYTES // 4))])
        history = node.endpoint.server._history  # type: ignore[attr-defined]
        changes, _, more = history.changes(0, absolute(badge, b""), 64)
        assert len(changes) == 4 and more
        feed = aiter(store.watch(0))
        assert len([await anext(feed) for _ in range(10)]) == 10
        await feed.aclose()


async def test_a_transaction_spans_keyspaces_and_ends_with_its_owner(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        party = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        await owner.commit([Write(b"a", b"1")], transaction=transaction)
        mark = await owner.savepoint(transaction)
        await party.commit([Write(b"b", b"undone")], transaction=transaction)
        await owner.undo(transaction, mark)
        await party.commit([Write(b"c", b"joined")], transaction=transaction)
        assert await owner.get(b"a") is None
        seen = await owner.read(transaction, b"a")
        assert seen is not None
        assert seen.value == b"1"
        for end in (party.finish(transaction), party.abort(transaction)):
            with pytest.raises(UnknownTransaction):
                await end
        done = await owner.finish(transaction)
        again = await owner.finish(transaction)
        assert again.repeated
        assert again.revision == done.revision
        assert [item.key for item in (await party.range(b"")).items] == [b"c"]
        item = await party.get(b"c")
        assert item is not None
        assert item.revision == done.revision
        who = await party.who(done.revision)
        assert who is not None
        assert (who.keyspace, who.others) == ("one", ("two",))


async def test_what_a_transaction_read_must_still_hold(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        await store.commit([Write(b"a", b"1"), Write(b"b", b"1")])
        for spoil in (Write(b"a", b"2"), Write(b"aa", b"phantom"), Write(b"b")):
            transaction = await store.begin(10.0)
            assert await store.read(transaction, b"a") is not None
            await store.scan(transaction, b"a", b"c")
            await store.commit([spoil])
            await store.commit([Write(b"out", b"x")], transaction=transaction)
            with pytest.raises(Conflict):
                await store.finish(transaction)
            with pytest.raises(Aborted):
                await store.read(transaction, b"a")
        transaction = await store.begin(10.0)
        await store.scan(transaction, b"a", b"aa")
        await store.commit([Write(b"z", b"elsewhere")])
        await store.finish(transaction)
        assert await store.get(b"out") is None


async def test_a_crash_aborts_and_a_hand_over_keeps_open_transactions(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        transaction = await store.begin(10.0)
        await store.commit(
            [Write(b"a", b"1")], [Expect(b"b", 0), Range(b"x", b"", 1)], transaction=transaction
        )
        state = node.endpoint.server.hand_over()
    async with serving(folder) as (node, kernel):
        crashed = node.proxy(State, 1, ALL)
        with pytest.raises(Aborted):
            await crashed.finish(transaction)
    endpoint = bind(Server, {"config": Settings(folder=str(folder), map_size=1 << 30)})
    endpoint.server.take_over(state)
    await endpoint.server.start()
    store = Node(endpoint).proxy(State, 1, ALL)
    await store.finish(transaction)
    assert await store.get(b"a") is not None
    await endpoint.server.stop()


async def test_a_reader_process_sees_what_was_acknowledged_and_refuses_to_write(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        await kernel.make_keyspace("one")
    # One process may open LMDB once; here the reader comes after the writer.
    async with serving(folder, role="reader") as (node, kernel):
        reader = node.proxy(State, 1, ALL)
        assert (await kernel.keyspaces())["one"] == 1
        assert await reader.get(b"k", least=1) is None
        with pytest.raises(BadRequest, match="reader"):
            await reader.commit([Write(b"k", b"1")])


async def test_deadline_ends_a_transaction(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        transaction = await store.begin(1e-9)
        with pytest.raises(Aborted, match="deadline"):
            await store.commit([Write(b"a", b"1")], transaction=transaction)
        with pytest.raises(BadRequest):
            await store.begin(0.0)


async def test_the_gather_rule_waits_only_for_those_it_remembers(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        with trio.fail_after(60):
            for _ in range(50):
                await store.commit([Write(b"k", b"v")])
        assert (await store.statistics())["committed"] >= 50
