"""Transactions that others take part in: what a call did counts if its caller took its reply, else not, whatever arrives
afterwards; a part can be shared further; nobody undoes or ends what is another's."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from atoll.ipc.context import in_hand
from atoll.ipc.errors import Aborted, BadRequest, Conflict, NotFound
from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves, bind
from atoll.ipc.system.state import State, UnknownTransaction, Write
from atoll.servers.state.opening import Settings
from atoll.servers.state.ownership import settle_format
from atoll.servers.state.server import Server as Store
from tests.conformance.store.store_engines import POINTS, Dying
from tests.kit.forked import forked

from .direct import Node
from .test_keyspace import hand, rows
from .test_server import ALL, serving


async def test_what_a_call_sends_after_it_came_to_nothing_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        part = await owner.share(transaction)
        await callee.commit([Write(b"in time", b"1")], transaction=part)
        await owner.retract(part)
        for late in (
            callee.commit([Write(b"late", b"1")], transaction=part),
            callee.read(part, b"late"),
            callee.share(part),
            callee.savepoint(part),
        ):
            with pytest.raises(Aborted):
                await late
        await owner.commit([Write(b"a", b"1")], transaction=transaction)
        done = await owner.finish(transaction)
        assert (await callee.range(b"")).items == []
        who = await owner.who(done.revision)
        assert who is not None and who.others == ()


async def test_a_transaction_ends_with_who_began_it(tmp_path: Path) -> None:
    """By its deadline of an hour it would have kept its place, and what it holds."""
    async with serving(tmp_path / "store") as (node, kernel):
        badge = await kernel.make_keyspace("one")
        gone, absent, stays = (node.proxy(State, badge, ALL, client=number) for number in (1, 2, 3))
        parts = []
        for owner in (gone, absent, stays):
            parts.append(await owner.share(await owner.begin(3600.0)))
            await owner.commit([Write(b"k", bytes(1000))], transaction=parts[-1])
        server = node.endpoint.server
        assert isinstance(server, Store)
        server.client_gone(1)
        assert (await kernel.statistics())["transactions"] == 2
        server.clients_present(frozenset({3}))
        assert (await kernel.statistics())["transactions"] == 1
        for part in parts[:2]:
            with pytest.raises(Aborted):
                await stays.read(part, b"k")
        assert await stays.read(parts[2], b"k") is not None


async def test_which_key_of_a_callee_had_changed_is_not_the_owners_to_know(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        for scans in (False, True):
            transaction = await owner.begin(10.0)
            part = await owner.share(transaction)
            if scans:
                await callee.scan(part, b"")
            else:
                await callee.read(part, b"whom it is about")
            await owner.join(part)
            await owner.commit([Write(b"a", b"1")], transaction=transaction)
            await callee.commit([Write(b"whom it is about", b"")])
            with pytest.raises(Conflict) as conflict:
                await owner.finish(transaction)
            assert (conflict.value.key, conflict.value.keyspace) == (b"", "two")


async def test_a_joined_part_takes_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        part = await owner.share(transaction)
        await callee.commit([Write(b"k", b"joined")], transaction=part)
        await owner.join(part)
        with pytest.raises(Aborted):
            await callee.commit([Write(b"k", b"late")], transaction=part)
        await owner.finish(transaction)
        item = await callee.get(b"k")
        assert item is not None and item.value == b"joined"


async def test_a_callee_undoes_only_its_own_and_ends_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        await owner.commit([Write(b"a", b"owner's"), Write(b"b", b"owner's")], transaction=transaction)
        part = await owner.share(transaction)
        mark = await callee.savepoint(part)
        assert mark == 2
        await callee.commit([Write(b"k", b"v")], transaction=part)
        await callee.undo(part, mark)
        with pytest.raises(BadRequest):
            await callee.undo(part, 0)
        for attempt in (callee.finish(part), callee.join(part), callee.retract(part)):
            with pytest.raises(UnknownTransaction):
                await attempt
        await callee.abort(part)
        await owner.join(part)
        await owner.finish(transaction)
        assert [item.key for item in (await owner.range(b"")).items] == [b"a", b"b"]


async def test_a_part_within_a_part_ends_with_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        middle = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        inner = node.proxy(State, await kernel.make_keyspace("three"), ALL, client=3)
        transaction = await owner.begin(10.0)
        outer_part = await owner.share(transaction)
        await middle.commit([Write(b"m", b"1")], transaction=outer_part)
        inner_part = await middle.share(outer_part)
        await inner.commit([Write(b"i", b"1")], transaction=inner_part)
        await owner.retract(outer_part)
        with pytest.raises(Aborted):
            await inner.commit([Write(b"i", b"2")], transaction=inner_part)
        await middle_again(owner, middle, inner, transaction)
        done = await owner.finish(transaction)
        assert [item.key for item in (await inner.range(b"")).items] == [b"i"]
        assert [item.key for item in (await middle.range(b"")).items] == [b"again"]
        who = await owner.who(done.revision)
        assert who is not None and set(who.others) == {"two", "three"}


async def middle_again(owner: State, middle: State, inner: State, transaction: bytes) -> None:
    """A second call, whose own call to a third server is answered the second time only."""
    part = await owner.share(transaction)
    await middle.commit([Write(b"again", b"1")], transaction=part)
    for joins in (False, True):
        within = await middle.share(part)
        await inner.commit(
            [Write(b"i", b"second"), *([] if joins else [Write(b"gone", b"")])], transaction=within
        )
        await (middle.join(within) if joins else middle.retract(within))
    await owner.join(part)


async def test_parts_are_handed_over_and_end_with_their_transaction(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with serving(folder) as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        part = await owner.share(transaction)
        await callee.commit([Write(b"k", b"before")], transaction=part)
        state = node.endpoint.server.hand_over()
    endpoint = bind(Store, {"config": Settings(folder=str(folder), map_size=1 << 30)})
    endpoint.server.take_over(state)
    await endpoint.server.start()
    node = Node(endpoint)
    owner, callee = node.proxy(State, 1, ALL, client=1), node.proxy(State, 2, ALL, client=2)
    await callee.commit([Write(b"l", b"after")], transaction=part)
    await owner.join(part)
    await owner.finish(transaction)
    with pytest.raises(Aborted):
        await callee.commit([Write(b"k", b"late")], transaction=part)
    assert [item.key for item in (await callee.range(b"")).items] == [b"k", b"l"]
    await endpoint.server.stop()


class Till(Interface):
    @call("write")
    def pay(self, key: str, sum: int) -> int: ...

    @call("write")
    def pay_and_hang(self, key: str, sum: int) -> int: ...


class Till_(Serves[Till]):
    """Writes two rows in a block of its own, which under a transaction is a part of it."""

    rows: Keyspace[int]

    @Till.pay.serve
    async def pay(self, key: str, sum: int) -> int:
        async with self.rows.transaction() as tx:
            tx.put(key, sum)
            tx.put(f"{key} twice", 2 * sum)
            if sum < 0:
                raise NotFound("money", key)
        return sum

    @Till.pay_and_hang.serve
    async def pay_and_hang(self, key: str, sum: int) -> int:
        async with self.rows.transaction() as tx:
            tx.put(key, sum)
            await tx.savepoint()
            await trio.sleep_forever()
        return sum


async def test_a_block_in_a_call_under_a_transaction_is_a_part_of_it(tmp_path: Path) -> None:
    async with rows(tmp_path) as (node, keyspace, kernel):
        theirs = Keyspace[int](node.proxy(State, await kernel.make_keyspace("theirs"), ALL, client=9), int)
        till = Node(bind(Till_, {"rows": theirs})).proxy(Till, 0, {"write"}, client=4)
        async with keyspace.transaction() as tx:
            tx.put("a", 1)
            shared = tx.share(till)
            assert await shared.pay("x", 5) == 5
            with pytest.raises(NotFound):
                await shared.pay("y", -1)
            with trio.move_on_after(0.05):
                await shared.pay_and_hang("z", 3)
            assert await theirs.get("x") is None  # nothing is committed but by the owner
        revision = tx.revision
        found = {row.key: (row.value, row.revision) async for row in theirs.range()}
        assert found == {"x": (5, revision), "x twice": (10, revision)}
        assert (await kernel.statistics())["transactions"] == 0


async def fails(keyspace: Keyspace[int]) -> None:
    async with keyspace.transaction() as inner:
        assert await inner.get("kept") == 1
        inner.put("gone", 1)
        raise ValueError("inner")


async def test_nested_blocks_in_one_handler(tmp_path: Path) -> None:
    async with rows(tmp_path) as (_, keyspace, _):
        async with keyspace.transaction() as outer:
            outer.put("kept", 1)
            part = await outer.part()
            with in_hand(hand(1, transaction=part)):
                with pytest.raises(ValueError, match="inner"):
                    await fails(keyspace)
                async with keyspace.transaction() as inner:
                    inner.put("inner", 2)
                    assert await inner.range() == [("inner", 2), ("kept", 1)]
                assert inner.revision is None
            await outer.state.join(part)
        assert {row.key: row.value async for row in keyspace.range()} == {"kept": 1, "inner": 2}


async def test_the_deadline_of_a_transaction_ends_its_parts(tmp_path: Path) -> None:
    async with serving(tmp_path / "store") as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        now = 0.0
        node.endpoint.server._transactions._now = lambda: now
        transaction = await owner.begin(10.0)
        part = await owner.share(transaction)
        now = 10.0
        for late in (
            owner.commit([Write(b"k", b"v")], transaction=part),
            owner.retract(part),
            owner.join(part),
        ):
            with pytest.raises(Aborted):
                await late
        assert (await owner.statistics())["transactions"] == 0


def finish_and_die(folder: Path, point: str, told: int) -> None:
    """Commits a transaction of two parties; the process is killed at a point of that."""
    engine = Dying(folder, -1, point)

    class Opened(Store):
        open_engine = staticmethod(lambda settings: (engine, settle_format(engine)))

    async def run() -> None:
        endpoint = bind(Opened, {"config": Settings()})
        await endpoint.server.start()
        node = Node(endpoint)
        kernel = node.proxy(State, 0, ALL)
        owner = node.proxy(State, await kernel.make_keyspace("one"), ALL, client=1)
        callee = node.proxy(State, await kernel.make_keyspace("two"), ALL, client=2)
        transaction = await owner.begin(10.0)
        await owner.commit([Write(b"k", b"owner's")], transaction=transaction)
        part = await owner.share(transaction)
        await callee.commit([Write(b"k", b"callee's" * 100)], transaction=part)
        await owner.join(part)
        engine.left = 0
        await owner.finish(transaction)
        os.write(told, b".")
        os.kill(os.getpid(), signal.SIGKILL)

    trio.run(run)


@pytest.mark.parametrize("point", [*POINTS, "after the answer"])
def test_a_store_killed_while_it_commits_leaves_both_or_neither(tmp_path: Path, point: str) -> None:
    told, tell = os.pipe()
    with forked(partial(finish_and_die, tmp_path / "store", point, tell)) as child:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    os.close(tell)
    answered = os.read(told, 1)
    os.close(told)
    assert ended is not None and ended.si_status == signal.SIGKILL
    assert bool(answered) == (point == "after the answer")

    async def look() -> list[dict[bytes, int]]:
        async with serving(tmp_path / "store") as (node, kernel):
            states = [node.proxy(State, await kernel.make_keyspace(name), ALL) for name in ("one", "two")]
            return [{item.key: item.revision for item in (await each.range(b"")).items} for each in states]

    own, theirs = trio.run(look)
    assert own == theirs and set(own) <= {b"k"}
    assert own or not answered
    assert not own or point not in ("before the batch", "before the log")
