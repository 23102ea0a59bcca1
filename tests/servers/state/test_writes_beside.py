"""What tasks, updates and blocks do beside one another: no write is dropped, none is lost to another, and a change that
cannot be sent fails alone."""

from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from atoll.ipc import Deferred, Interface, Keyspace, Serves, call, testing
from atoll.ipc.context import Fields, SystemClock, current, in_hand
from atoll.ipc.durable.effects import Effects
from atoll.ipc.errors import Aborted, BadRequest, Conflict, DeadlineExceeded, Overloaded, TooLarge
from atoll.ipc.keyspace import settled
from atoll.ipc.participation import TakingPart
from atoll.ipc.serve import bind
from atoll.ipc.system.state import State, UnknownTransaction, Write
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server as StateServer
from tests.durable.failing import Failing

from .direct import Node
from .test_keyspace import hand, rows
from .test_server import ALL, serving

LARGE = 9 << 20
"""Bytes of a value that travels once, and not beside itself as a stored reply."""


def one_more(before: int | None) -> int:
    return (before or 0) + 1


# transactions -----------------------------------------------------------------------------------------------------


async def test_what_a_task_writes_while_another_reads_is_committed(tmp_path: Path) -> None:
    """Before, what was written while the store was told of earlier writes was forgotten with these."""
    async with rows(tmp_path) as (_, keyspace, _):
        async with keyspace.transaction() as tx, trio.open_nursery() as nursery:
            looked = trio.Event()
            written = 0

            async def look() -> None:
                for _ in range(10):
                    await tx.range()
                looked.set()

            nursery.start_soon(look)
            while not looked.is_set():
                tx.put(f"{written:06d}", written)
                written += 1
                await trio.lowlevel.checkpoint()
        assert [row.value async for row in keyspace.range()] == list(range(written))


async def test_a_row_that_is_appended_beside_a_read_is_told_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        state = node.proxy(State, await kernel.make_keyspace("rows"), ALL | {"append"})
        keyspace = Keyspace[int](state, int)
        async with keyspace.transaction() as tx:
            tx.append("a", 1)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(tx.range)
        assert await keyspace.get("a") == 1


async def test_a_row_is_written_over_while_it_is_told_as_a_new_one(tmp_path: Path) -> None:
    """Before, it was told as new once more, and met itself."""
    async with serving(tmp_path / "store") as (node, kernel):
        failing = Failing(node.proxy(State, await kernel.make_keyspace("rows"), ALL | {"append"}))
        keyspace = Keyspace[int](failing.state, int)
        held = failing.hold("append")
        async with keyspace.transaction() as tx, trio.open_nursery() as nursery:
            tx.append("changed", 1)
            tx.append("deleted", 1)
            nursery.start_soon(tx.savepoint)
            await trio.testing.wait_all_tasks_blocked()
            tx.put("changed", 2)
            tx.delete("deleted")
            tx.append("later", 1)
            held[0]()
        assert {row.key: row.value async for row in keyspace.range()} == {"changed": 2, "later": 1}


async def test_a_row_is_new_once_though_whoever_told_of_it_was_cancelled(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        failing = Failing(node.proxy(State, await kernel.make_keyspace("rows"), ALL | {"append"}))
        keyspace = Keyspace[int](failing.state, int)
        held = failing.hold("append")
        async with keyspace.transaction() as tx:
            tx.append("a", 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tx.savepoint)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                held[0]()
        assert await keyspace.get("a") == 1


async def test_a_row_that_could_not_be_told_is_still_to_be_a_new_one(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        failing = Failing(node.proxy(State, await kernel.make_keyspace("rows"), ALL | {"append"}))
        keyspace = Keyspace[int](failing.state, int)
        await settled(keyspace.put("there", 1))

        async def append(*keys: str) -> None:
            async with keyspace.transaction() as tx:
                for key in keys:
                    tx.append(key, 2)
                failing.fail("append", Overloaded("State.append"))
                with pytest.raises(Overloaded):
                    await tx.savepoint()

        await append("new")
        with pytest.raises(Conflict):
            await append("there")
        assert {row.key: row.value async for row in keyspace.range()} == {"new": 2, "there": 1}


async def test_all_keyspaces_of_a_transaction_are_told_of_together(tmp_path: Path) -> None:
    """Whichever of its faces is asked: what is shared, marked or undone is the transaction, not the face."""
    async with rows(tmp_path) as (node, keyspace, kernel):
        theirs = Keyspace[int](node.proxy(State, await kernel.make_keyspace("theirs"), ALL), int)
        async with keyspace.transaction() as tx:
            other = tx.on(theirs)
            tx.put("kept", 1)
            mark = await other.savepoint()
            tx.put("undone", 1)
            other.put("undone", 1)
            await other.undo(mark)
            tx.put("seen", 1)
            part = await other.part()
            assert await keyspace.state.read(part, b"seen") is not None
            await other.state.join(part)
        assert {row.key async for row in keyspace.range()} == {"kept", "seen"}
        assert [row async for row in theirs.range()] == []


async def test_a_keyspace_that_is_taken_in_twice_is_one(tmp_path: Path) -> None:
    """Each face sees what was written through the other, and what was written last is what is committed."""
    async with rows(tmp_path) as (node, keyspace, kernel):
        state = node.proxy(State, await kernel.make_keyspace("theirs"), ALL | {"append"})
        theirs, same = Keyspace[int](state, int), Keyspace[int](state, int)
        async with keyspace.transaction() as tx:
            first, second = tx.on(theirs), tx.on(same)
            second.put("a", 1)
            assert await first.get("a") == 1
            first.put("a", 2)
            second.append("b", 1)
            first.delete("b")
            assert await second.get("b") is None
        assert {row.key: row.value async for row in theirs.range()} == {"a": 2}


async def test_a_write_after_the_block_is_refused(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        async with keyspace.transaction() as tx:
            tx.put("a", 1)
        with pytest.raises(BadRequest, match="before the end of its block"):
            tx.put("b", 1)


async def test_a_transaction_gives_no_more_rows_than_were_asked_for(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _), keyspace.transaction() as tx:
        for key in ("a", "b", "c"):
            tx.put(key, 1)
        assert await tx.range(limit=2) == [("a", 1), ("b", 1)]


# their beginning --------------------------------------------------------------------------------------------------


async def test_a_transaction_whose_beginning_nobody_heard_of_is_ended() -> None:
    """Also when the deadline of the call that it was for has passed, which is no deadline of what ends it."""
    with testing.running(StateServer, config=Settings(engine="memory")) as store:
        badge = store.client(State).make_keyspace.now("rows")
        failing = Failing(store.client(State, badge=badge))
        keyspace = Keyspace[int](failing.state, int)
        late = hand(1)

        async def work(*, begins: bool) -> None:
            async with keyspace.transaction():
                assert begins
                late.fields = msgspec.structs.replace(late.fields, deadline=1e-9)
                raise DeadlineExceeded("what it does then", 1.0)

        async def open_ones() -> int:
            return (await store.client(State).statistics())["transactions"]

        failing.fail("begin", DeadlineExceeded("State.begin", 1.0), taken=True)
        with pytest.raises(DeadlineExceeded, match="begin"):
            await work(begins=False)
        assert await open_ones() == 0
        with pytest.raises(DeadlineExceeded, match="what it does"), in_hand(late):
            await work(begins=True)
        assert await open_ones() == 0


async def test_an_id_that_the_owner_draws_is_nobody_elses(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        badge = await kernel.make_keyspace("one")
        owner, other = node.proxy(State, badge, ALL, client=1), node.proxy(State, badge, ALL, client=2)
        drawn = bytes(range(16))
        assert await owner.begin(10.0, transaction=drawn) == drawn
        await owner.commit([Write(b"k", b"1")], transaction=drawn)
        assert await owner.begin(10.0, transaction=drawn) == drawn  # the same, and what was written in it
        with pytest.raises(UnknownTransaction):
            await other.begin(10.0, transaction=drawn)
        part = await owner.share(drawn)
        with pytest.raises(UnknownTransaction):
            await owner.begin(10.0, transaction=part)
        with pytest.raises(BadRequest, match="16 random bytes"):
            await owner.begin(10.0, transaction=b"short")
        await owner.finish(drawn)
        item = await owner.get(b"k")
        assert item is not None and item.value == b"1"


# updates ----------------------------------------------------------------------------------------------------------


class Twice(Interface):
    @call("write")
    def update(self, key: str) -> int: ...

    @call("write")
    def replace(self, key: str, value: int) -> int: ...

    @call("write")
    def reserve(self, who: str, seats: int) -> int: ...

    @call("read")
    def backwards(self) -> int: ...

    @call("write")
    def block(self, key: str) -> int: ...


class Twice_(Serves[Twice]):
    rows: Keyspace[int]

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        """Under which `block` was called."""

    @Twice.update.serve
    def update(self, key: str) -> Deferred[int]:
        self.rows.update(key, one_more)
        return self.rows.update(key, one_more)

    @Twice.replace.serve
    def replace(self, key: str, value: int) -> Deferred[int]:
        self.rows.update(key, one_more)
        self.rows.put_all({key: value, "beside": value})
        return self.rows.update(key, one_more)

    @Twice.reserve.serve
    async def reserve(self, who: str, seats: int) -> int:
        taken = sum([row.value or 0 async for row in self.rows.range("seat/", "seat0")])
        if taken >= seats:
            return 0
        await settled(self.rows.put(f"seat/{who}", 1))
        return sum([row.value or 0 async for row in self.rows.range("seat/", "seat0")])

    @Twice.backwards.serve
    async def backwards(self) -> int:
        return len([row async for row in self.rows.range(reverse=True)])

    @Twice.block.serve
    async def block(self, key: str) -> int:
        self.parts.append(current().transaction or b"")
        async with self.rows.transaction() as tx:
            tx.put(key, 2)
        return 2


async def test_changes_of_a_row_under_a_transaction_are_all_counted() -> None:
    """Over a store that answers later, as a store does."""
    with testing.running(StateServer, config=Settings(engine="memory")) as store:
        kernel = store.client(State)
        one, two = await kernel.make_keyspace("one"), await kernel.make_keyspace("two")
        theirs = Keyspace[int](store.client(State, badge=two), int)
        with testing.running(Twice_, needs={"rows": theirs}) as serving_:
            twice = serving_.client(Twice)
            async with Keyspace[int](store.client(State, badge=one), int).transaction() as tx:
                assert await tx.share(twice).update("x") == 2
                assert await tx.share(twice).replace("y", 10) == 11
        found = {row.key: row.value async for row in Keyspace[int](theirs.state, int).range()}
        assert found == {"beside": 10, "x": 2, "y": 11}


async def test_a_call_that_was_answered_has_joined_though_no_cast_had_room() -> None:
    """Before, it failed where much was on its way to the store, and what it had written stayed."""
    with testing.running(StateServer, config=Settings(engine="memory")) as store:
        kernel = store.client(State)
        one, two = await kernel.make_keyspace("one"), await kernel.make_keyspace("two")
        owner, callee = (Failing(store.client(State, badge=badge)) for badge in (one, two))
        for full in (owner, callee):
            full.fail("join", Overloaded("the channel to state"))
        with testing.running(Twice_, needs={"rows": Keyspace(callee.state, int)}) as serving_:
            twice = serving_.client(Twice)
            async with Keyspace[int](owner.state, int).transaction() as tx:
                shared = tx.share(twice)
                assert await shared.block("x") == 2
                server = serving_.server
                assert isinstance(server, Twice_)
                part = server.parts.pop()
                with pytest.raises(Aborted):
                    await callee.state.commit([Write(b"x", b"late")], transaction=part)
        found = {row.key: row.value async for row in Keyspace[int](callee.state, int).range()}
        assert found == {"x": 2}


@pytest.mark.parametrize("followed", [False, True])
async def test_a_change_that_cannot_be_sent_fails_alone(followed: bool) -> None:
    """Before, whoever changed that row next waited for ever."""
    with testing.running(StateServer, config=Settings(engine="memory")) as store:
        badge = store.client(State).make_keyspace.now("rows")
        keyspace = Keyspace[bytes](store.client(State, badge=badge), bytes)
        if followed:
            await keyspace.load()
        with in_hand(hand(1)):
            sizes = (1, LARGE, 2, LARGE, 3)
            asked = [keyspace.update("k", lambda _, size=size: bytes(size)) for size in sizes]  # type: ignore[misc]
        for size, done in zip(sizes, asked, strict=True):
            if size == LARGE:
                with pytest.raises(TooLarge):
                    await settled(done)
            else:
                assert len(await settled(done)) == size
        with in_hand(hand(2)), pytest.raises(TooLarge):
            await settled(keyspace.put("k", bytes(2 * LARGE)))
        assert await keyspace.get("k") == bytes(3)


async def test_a_row_of_another_type_fails_its_change_and_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        state = node.proxy(State, await kernel.make_keyspace("rows"), ALL)
        texts, numbers = Keyspace[str](state, str), Keyspace[int](state, int)
        await settled(texts.put("k", "a word"))
        for _ in range(2):
            with pytest.raises(msgspec.ValidationError):
                await settled(numbers.update("k", one_more))
        await settled(texts.delete("k"))
        assert await settled(numbers.update("k", one_more)) == 1


async def test_the_view_has_values_of_its_own(tmp_path: Path) -> None:
    """What is done to a value after it was written, or to the one that is given to be changed, is not in the view."""
    async with serving(tmp_path / "store") as (node, kernel):
        state = node.proxy(State, await kernel.make_keyspace("rows"), ALL)
        lists = Keyspace[list[int]](state, list[int])
        await lists.load()
        mine = [1]
        await settled(lists.put("k", mine))
        mine.append(2)
        assert lists.local["k"] == [1]

        def spoil(before: list[int] | None) -> list[int]:
            assert before is not None
            before.append(3)
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await settled(lists.update("k", spoil))
        given = await settled(lists.update("k", lambda before: [*(before or []), 4]))
        given.append(5)
        assert lists.local["k"] == [1, 4]


# ranges -----------------------------------------------------------------------------------------------------------


async def test_a_range_under_a_transaction_is_part_of_it(tmp_path: Path) -> None:
    """Before, it saw what was committed, without the transaction's own rows, and two took the last seat."""
    async with rows(tmp_path) as (node, keyspace, kernel):
        theirs = Keyspace[int](node.proxy(State, await kernel.make_keyspace("theirs"), ALL, client=9), int)
        seats = Node(bind(Twice_, {"rows": theirs})).proxy(Twice, 0, {"write", "read"}, client=4)
        await settled(theirs.put_all({f"seat/{number:04d}": 1 for number in range(1200)}))

        async def book(who: str) -> int:
            async with keyspace.transaction() as tx:
                given = await tx.share(seats).reserve(who, 1201)
                both.set() if who == "cid" else await both.wait()
                await trio.lowlevel.checkpoint()
                return given

        async def booking(who: str) -> None:
            try:
                booked[who] = await book(who)
            except Exception as error:
                booked[who] = type(error).__name__

        both, booked = trio.Event(), dict[str, int | str]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(booking, "dan")
            nursery.start_soon(booking, "cid")
        assert sorted(booked.values(), key=str) == [1201, "Conflict"]
        assert len([row async for row in theirs.range("seat/", "seat0")]) == 1201
        async with keyspace.transaction() as tx:
            with pytest.raises(BadRequest, match="in the order of its keys"):
                await tx.share(seats).backwards()


async def test_a_limit_counts_own_rows(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        await settled(keyspace.put_all({"b": 1, "d": 1, "f": 1}))
        async with keyspace.transaction() as outer:
            outer.put("a", 2)
            outer.put("c", 2)
            outer.delete("d")
            part = await outer.part()
            with in_hand(hand(1, transaction=part)):
                for limit in range(1, 6):
                    found = [(row.key, row.value) async for row in keyspace.range(limit=limit)]
                    assert found == [("a", 2), ("b", 1), ("c", 2), ("f", 1)][:limit]
            await outer.state.join(part)


# steps ------------------------------------------------------------------------------------------------------------


async def test_what_a_step_writes_twice_is_in_the_view_as_it_was_written_last(tmp_path: Path) -> None:
    """Before, the view had the first of it for good; an update began with that, met nothing newer, and what the step had
    written was lost."""
    async with rows(tmp_path) as (_, keyspace, _):
        effects = Effects(keyspace.state)
        with in_hand(TakingPart(Fields(method="Counter.add"), SystemClock(), effects)):
            for key in ("twice", "deleted", "put"):
                await settled(keyspace.put(key, 1))
            await settled(keyspace.put("twice", 2))
            await settled(keyspace.delete("deleted"))
            await settled(keyspace.delete("put"))
            await settled(keyspace.put("put", 2))
        await effects.commit([], [], "step")
        assert dict(keyspace.local.items()) == {"twice": 2, "put": 2}
        assert await settled(keyspace.update("twice", one_more)) == 3
        await trio.testing.wait_all_tasks_blocked()
        assert dict(keyspace.local.items()) == {"twice": 3, "put": 2}
        assert {row.key: row.value async for row in keyspace.range()} == {"twice": 3, "put": 2}


async def test_what_another_wrote_after_a_step_and_with_it_is_in_the_view(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        effects = Effects(keyspace.state)
        with in_hand(TakingPart(Fields(method="Counter.add"), SystemClock(), effects)):
            await settled(keyspace.put("written over", 1))
            await settled(keyspace.put("deleted", 1))
        part = await effects.part()
        await keyspace.state.commit([Write(b"written over", b"\x02"), Write(b"deleted")], transaction=part)
        await keyspace.state.join(part)
        await effects.commit([], [], "step")
        await trio.testing.wait_all_tasks_blocked()
        assert dict(keyspace.local.items()) == {"written over": 2}
