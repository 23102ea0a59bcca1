"""`Keyspace` over a real store: typed rows, local view, once, updates that meet, transactions with a second
server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import ValidationError

from atoll.ipc.context import Call, Fields, SystemClock, in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import BadRequest, Conflict, NotFound
from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import AHEAD, Keyspace, settled
from atoll.ipc.local_view import LocalView
from atoll.ipc.serve import Serves, bind
from atoll.ipc.system.state import Retention, State
from atoll.ipc.transaction import PAGE, Transaction
from atoll.servers.state.server import Server as Store

from .direct import Node
from .test_server import ALL, serving


class Counter(Interface):
    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...


class Server(Serves[Counter]):
    rows: Keyspace[int]

    @Counter.add.serve
    def add(self, key: str, by: int = 1) -> Deferred[int]:
        def change(old: int | None) -> int:
            if by < 0:
                raise NotFound("negative step", key)
            return (old or 0) + by

        return self.rows.update(key, change)


@asynccontextmanager
async def rows(tmp_path: Path, name: str = "rows") -> AsyncIterator[tuple[Node, Keyspace[int], State]]:
    async with serving(tmp_path / "store") as (node, kernel), trio.open_nursery() as nursery:
        badge = await kernel.make_keyspace(name)
        state = node.proxy(State, badge, ALL)
        keyspace = Keyspace[int](state, int, boot=1)
        await nursery.start(keyspace.follow)
        yield node, keyspace, kernel
        nursery.cancel_scope.cancel()


def hand(request: int, transaction: bytes | None = None) -> Call:
    made = Call(
        Fields(method="Counter.add", client=7, request=request, transaction=transaction), SystemClock()
    )
    made.thread = -1
    return made


async def test_own_writes_are_in_the_local_view_at_once_and_others_by_the_feed(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        revision = await settled(keyspace.put("a", 1))
        assert keyspace.local["a"] == 1
        assert keyspace.local.revision_of("a") == revision
        other = Keyspace[int](keyspace.state, int)
        await settled(other.put(b"\xfeb", 2))
        await settled(other.delete("a"))
        while "a" in keyspace.local:
            await trio.lowlevel.checkpoint()
        assert dict(keyspace.local.items()) == {"\udcfeb": 2}
        assert await keyspace.get("a") is None
        assert await keyspace.as_of(revision).get("a") == 1
        assert [row.value for row in await keyspace.history("a")] == [None, 1]


async def test_a_value_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    """A value of another type ended whoever followed the keyspace, and its successors."""
    wrong: Any = True
    async with rows(tmp_path) as (_, keyspace, _):
        for write in (keyspace.put, keyspace.append):
            with pytest.raises(ValidationError):
                await settled(write("a", wrong))
        with pytest.raises(ValidationError):
            await settled(keyspace.update("a", lambda before: wrong))
        async with keyspace.transaction() as tx:
            with pytest.raises(ValidationError):
                tx.put("a", wrong)
        assert await keyspace.get("a") is None
        await settled(keyspace.put("a", 1))
        assert keyspace.local["a"] == 1


async def test_rows_of_one_moment_come_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        names = [f"k{number}" for number in range(3 * AHEAD)]
        revision = await settled(keyspace.put_all({name: place for place, name in enumerate(names)}))
        await settled(keyspace.put("k3", 300))
        await settled(keyspace.delete("k4"))
        found = await keyspace.rows_at(["none", *reversed(names)], as_of=revision)
        assert [row and (row.key, row.value) for row in found] == [
            None,
            *reversed([(name, place) for place, name in enumerate(names)]),
        ]
        assert await keyspace.rows_at([], as_of=revision) == []


async def test_what_an_earlier_delivery_wrote_is_in_the_view_before_it_is_answered_again(
    tmp_path: Path,
) -> None:
    """The store died with the reply: the commit is sent again, and found there, while the feed is still broken off."""
    async with rows(tmp_path) as (_, first, _), trio.open_nursery() as nursery:
        again = Keyspace[int](first.state, int, boot=1)
        await again.load()
        with in_hand(hand(5)):
            assert await settled(first.update("x", lambda old: (old or 0) + 1)) == 1
        with in_hand(hand(6)):
            await settled(first.put("y", 1))
        answers: list[tuple[int, int | None]] = []

        async def deliver(step: Deferred[int], key: str) -> None:
            value = await settled(step)
            answers.append((value, again.local.get(key)))

        with in_hand(hand(5)):
            nursery.start_soon(deliver, again.update("x", lambda old: (old or 0) + 1), "x")
        with in_hand(hand(6)):
            # What the handler makes of it this time was not what was committed: the view has the store's word.
            nursery.start_soon(deliver, again.put("y", 2), "y")
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(again.follow)
        while len(answers) < 2:
            await trio.lowlevel.checkpoint()
        revision = first.local.revision_of("y")
        assert sorted(answers) == [(1, 1), (revision, 1)]
        nursery.cancel_scope.cancel()


def test_a_reply_that_comes_behind_the_feed_brings_nothing_back() -> None:
    """The feed has brought an own write and another's deletion of it before the write's reply is looked at."""
    view = LocalView[int]()
    view.put("x", 1, 8)
    view.delete("x", 9)
    view.pass_to(10)
    view.wrote("x", 1, 8)
    assert "x" not in view
    view.erased("x", 8)
    view.wrote("x", 2, 11)
    assert view["x"] == 2


def test_what_was_deleted_here_does_not_come_back_while_the_feed_lags() -> None:
    """It tells of another's deletion and write, from before the deletion that was acknowledged to this process."""
    view = LocalView[int]()
    view.put("x", 1, 5)
    view.pass_to(10)
    view.erased("x", 20)
    view.delete("x", 15)
    view.pass_to(15)
    view.put("x", 2, 18)
    assert "x" not in view
    view.pass_to(18)
    view.put("x", 3, 21)
    assert view["x"] == 3


async def test_all_pages_of_a_range_as_of_a_time_are_of_one_state(tmp_path: Path) -> None:
    """Also where something is committed meanwhile that bears no later time."""
    async with rows(tmp_path) as (_, keyspace, _):
        await settled(keyspace.put_all({f"{number:04}": number for number in range(PAGE + 2)}))
        found = []
        async for row in keyspace.range(as_of=time.time() + 3600):
            if not found:
                await settled(keyspace.put(f"{PAGE + 1:04}", -1))
            found.append(row.value)
        assert found == list(range(PAGE + 2))


async def test_a_repeated_delivery_gets_the_stored_reply(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):

        def twice() -> tuple[Deferred[int], Deferred[int]]:
            return keyspace.update("a", lambda n: (n or 0) + 1), keyspace.update("a", lambda n: (n or 0) + 10)

        with in_hand(hand(5)):
            first = [await settled(done) for done in twice()]
        await settled(keyspace.put("a", 100))
        with in_hand(hand(5)):
            again = [await settled(done) for done in twice()]
        with in_hand(hand(6)):
            fresh = await settled(keyspace.update("a", lambda n: (n or 0) + 1))
        assert first == again == [1, 11]
        assert fresh == 101


async def test_updates_that_meet_are_all_counted(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        others = [keyspace, Keyspace[int](keyspace.state, int), Keyspace[int](keyspace.state, int)]
        done = [others[turn % 3].update("a", lambda n: (n or 0) + 1) for turn in range(60)]
        values = [await settled(one) for one in done]
        assert sorted(values) == list(range(1, 61))
        assert await keyspace.get("a") == 60


async def test_an_update_that_raises_writes_nothing(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):

        def fail(_: int | None) -> int:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await settled(keyspace.update("a", fail))
        assert await settled(keyspace.update("a", lambda n: n or 3)) == 3


async def test_ranges_come_in_pages(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        await settled(keyspace.put_all({f"{number:05d}": number for number in range(2500)}))
        assert [row.value async for row in keyspace.range()] == list(range(2500))
        assert [row.value async for row in keyspace.range(reverse=True, limit=1200)] == list(
            range(2499, 1299, -1)
        )
        assert [row.key async for row in keyspace.range("00010", "00012")] == ["00010", "00011"]


async def test_a_transaction_with_another_server_joins_and_undoes(tmp_path: Path) -> None:
    async with rows(tmp_path) as (node, keyspace, kernel):
        theirs = Keyspace[int](node.proxy(State, await kernel.make_keyspace("theirs"), ALL, client=9), int)
        counter = Node(bind(Server, {"rows": theirs})).proxy(Counter, 0, {"write"}, client=4)
        async with keyspace.transaction() as transaction:
            assert await transaction.get("a") is None
            transaction.put("a", 1)
            shared = transaction.share(counter)
            assert await shared.add("x", 5) == 5
            with pytest.raises(NotFound):
                await shared.add("x", -1)
            assert await shared.add("x", 2) == 7
            mark = await transaction.savepoint()
            transaction.put("a", 99)
            await transaction.undo(mark)
            assert await transaction.range() == [("a", 1)]
            assert await theirs.get("x") is None
        first, second = await keyspace.row("a"), await theirs.row("x")
        assert first is not None
        assert second is not None
        assert (first.value, second.value) == (1, 7)
        assert first.revision == second.revision == transaction.revision


async def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, kernel):

        async def body() -> None:
            async with keyspace.transaction() as transaction:
                transaction.put("a", 1)
                await transaction.savepoint()
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            await body()
        assert await keyspace.get("a") is None
        assert (await kernel.statistics())["transactions"] == 0


async def test_retry_runs_again_after_a_conflict(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        await settled(keyspace.put("a", 0))
        runs = 0

        async def body(transaction: Transaction[int]) -> int:
            nonlocal runs
            runs += 1
            value = (await transaction.get("a") or 0) + 1
            if runs <= 2:
                await settled(keyspace.put("a", 10 * runs))
            transaction.put("a", value)
            return value

        assert await keyspace.retry(body) == 21
        assert runs == 3
        runs = -100
        with pytest.raises(Conflict):
            await keyspace.retry(body, attempts=2)


async def test_a_transaction_expects_rows_that_are_known_without_asking_for_them(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, kernel):
        await settled(keyspace.put("a", 1))
        asked = (await kernel.statistics())["reads"]

        async def write(a: int, b: int, *, undone: bool = False) -> None:
            async with keyspace.transaction() as transaction:
                transaction.expect("a", a)
                if undone:
                    await transaction.undo(await transaction.savepoint())
                transaction.expect("b", b)
                transaction.put("c", 1)

        known = keyspace.local.revision_of("a")
        await write(known, keyspace.local.revision_of("b"))
        await write(known, 0, undone=True)
        assert (await kernel.statistics())["reads"] == asked
        before = await keyspace.row("c")
        await settled(keyspace.put("b", 1))
        for undone in (False, True):
            for a, b, key in ((known, 0, b"b"), (0, keyspace.local.revision_of("b"), b"a")):
                with pytest.raises(Conflict) as found:
                    await write(a, b, undone=undone)
                assert found.value.key == key
        assert await keyspace.row("c") == before


async def test_a_transaction_that_expects_and_writes_nothing_conflicts_too(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, kernel):

        async def expect(*revisions: int) -> Transaction[int]:
            async with keyspace.transaction() as transaction:
                for revision in revisions:
                    transaction.expect("a", revision)
            return transaction

        done = await expect(0)
        with pytest.raises(BadRequest, match="after it"):
            done.expect("a", 0)
        for revisions in ((1,), (0, 1), (1, 0)):
            with pytest.raises(Conflict):
                await expect(*revisions)
        assert (await kernel.statistics())["transactions"] == 0


async def test_a_keyspace_kept_remote_has_no_view(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        keyspace = Keyspace[int](node.proxy(State, await kernel.make_keyspace("rows"), ALL), int)
        keyspace.keep_remote()
        await keyspace.follow()
        with pytest.raises(RuntimeError, match="keep_remote"):
            _ = keyspace.local


@pytest.mark.parametrize("rights", [ALL, {"read", "write"}])
async def test_the_local_view_goes_on_after_the_store_was_restarted(tmp_path: Path, rights: set[str]) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        badge = await kernel.make_keyspace("rows")
        keyspace = Keyspace[int](node.proxy(State, badge, rights), int)
        await settled(keyspace.put_all({"a": 1, "gone": 1}))
        await keyspace.load()
        assert keyspace.local["a"] == 1
    async with serving(tmp_path / "store") as (again, _), trio.open_nursery() as nursery:
        keyspace.state = again.proxy(State, badge, rights)
        theirs = Keyspace[int](keyspace.state, int)
        for number in (2, 3):
            await settled(theirs.put("a", number))
        await settled(theirs.delete("gone"))
        await nursery.start(keyspace.follow)
        await settled(theirs.put("b", 2))
        while "b" not in keyspace.local:
            await trio.lowlevel.checkpoint()
        assert dict(keyspace.local.items()) == {"a": 3, "b": 2}
        nursery.cancel_scope.cancel()


async def test_the_local_view_is_made_anew_when_what_it_missed_is_no_longer_kept(tmp_path: Path) -> None:
    """Its process was frozen for longer than the keyspace keeps its past: a deletion meanwhile has left no trace."""
    async with serving(tmp_path / "store", grace=0.0) as (node, kernel), trio.open_nursery() as nursery:
        badge = await kernel.make_keyspace("rows", Retention(age=0.0))
        state = node.proxy(State, badge, ALL)
        keyspace, theirs = Keyspace[int](state, int), Keyspace[int](state, int)
        await settled(theirs.put_all({"a": 1, "gone": 1, "stays": 1}))
        await keyspace.load()
        before = keyspace.local
        for number in (2, 3):
            await settled(theirs.put("a", number))
        await settled(theirs.delete("gone"))
        await settled(theirs.put("b", 2))
        server = node.endpoint.server
        assert isinstance(server, Store)
        await server._passes.make()
        assert (await state.horizon()).versions == 4
        await nursery.start(keyspace.follow)
        await settled(theirs.put("c", 3))
        while "c" not in before:
            await trio.lowlevel.checkpoint()
        assert dict(before.items()) == {"a": 3, "b": 2, "c": 3, "stays": 1}
        nursery.cancel_scope.cancel()
