"""Parts of a transaction that are in hand beside one another: who comes to nothing takes along what it wrote, no more."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.errors import NotFound, TooLarge
from atoll.ipc.interface import Interface, call
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves, bind
from atoll.ipc.system.state import Range, State, Write
from atoll.servers.state import transactions
from atoll.servers.state.history import History
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.transactions import Transactions

from .direct import Node
from .test_keyspace import rows
from .test_server import ALL, folder, serving

__all__ = ["folder"]


class Till(Interface):
    @call("write")
    def pay(self, key: str, sum: int) -> int: ...


class Slow(Serves[Till]):
    """Fails, after it has begun and others have written."""

    rows: Keyspace[int]

    def __init__(self) -> None:
        self.begun, self.go_on = trio.Event(), trio.Event()

    @Till.pay.serve
    async def pay(self, key: str, sum: int) -> int:
        self.begun.set()
        await self.go_on.wait()
        async with self.rows.transaction() as tx:
            tx.put(key, sum)
        raise NotFound("money", key)


class Quick(Serves[Till]):
    rows: Keyspace[int]

    @Till.pay.serve
    async def pay(self, key: str, sum: int) -> int:
        async with self.rows.transaction() as tx:
            tx.put(key, sum)
        return sum


class Both(Serves[Till]):
    """Two blocks of one handler, each by itself; that one of them fails is borne."""

    rows: Keyspace[int]

    @Till.pay.serve
    async def pay(self, key: str, sum: int) -> int:
        begun, written = trio.Event(), trio.Event()

        async def fails() -> None:
            with suppress(ZeroDivisionError):
                async with self.rows.transaction() as tx:
                    await tx.get("whatever")
                    begun.set()
                    await written.wait()
                    raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails)
            await begun.wait()
            async with self.rows.transaction() as tx:
                tx.put(key, sum)
            written.set()
        return sum


async def all_of(keyspace: Keyspace[int]) -> dict[str, int | None]:
    return {row.key: row.value async for row in keyspace.range()}


async def test_a_call_that_fails_leaves_what_another_was_acknowledged(tmp_path: Path) -> None:
    async with rows(tmp_path) as (node, keyspace, kernel):
        one = Keyspace[int](node.proxy(State, await kernel.make_keyspace("one"), ALL, client=9), int)
        two = Keyspace[int](node.proxy(State, await kernel.make_keyspace("two"), ALL, client=10), int)
        slow = bind(Slow, {"rows": one})
        first = Node(slow).proxy(Till, 0, {"write"}, client=4)
        second = Node(bind(Quick, {"rows": two})).proxy(Till, 0, {"write"}, client=5)
        async with keyspace.transaction() as tx:

            async def fails() -> None:
                with pytest.raises(NotFound):
                    await tx.share(first).pay("x", -1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails)
                await slow.server.begun.wait()
                assert await tx.share(second).pay("y", 7) == 7
                slow.server.go_on.set()
        assert (await all_of(one), await all_of(two)) == ({}, {"y": 7})


@pytest.mark.parametrize("under", [False, True])
async def test_a_block_that_fails_leaves_what_another_wrote(tmp_path: Path, under: bool) -> None:
    async with rows(tmp_path) as (node, keyspace, kernel):
        one = Keyspace[int](node.proxy(State, await kernel.make_keyspace("one"), ALL, client=9), int)
        till = Node(bind(Both, {"rows": one})).proxy(Till, 0, {"write"}, client=4)
        if under:
            async with keyspace.transaction() as tx:
                assert await tx.share(till).pay("y", 7) == 7
        else:
            assert await till.pay("y", 7) == 7
        assert await all_of(one) == {"y": 7}


# any order --------------------------------------------------------------------------------------------------------

OWNER: Final = 0
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "share", "join", "retract", "undo", "hand over"]), st.integers(0, 7)),
    max_size=40,
)


class Model:
    """Who is in hand, in whom it was made, and what stands of it, each write with its number."""

    def __init__(self) -> None:
        self.within: dict[int, int] = {}
        self.written: dict[int, dict[int, bytes]] = {OWNER: {}}
        self.made = 0

    def share(self, part: int) -> int:
        self.made += 1
        self.within[self.made] = part
        self.written[self.made] = {}
        return self.made

    def end(self, part: int) -> dict[int, bytes]:
        """What had been written in a part and in those made in it."""
        all_in = self.written.pop(part)
        for inner in [each for each, outer in self.within.items() if outer == part]:
            all_in |= self.end(inner)
        del self.within[part]
        return all_in

    def stands(self) -> list[bytes]:
        every = {number: key for each in self.written.values() for number, key in each.items()}
        return [every[number] for number in sorted(every)]


@given(STEPS)
def test_what_stands_is_what_was_not_undone(steps: list[tuple[str, int]]) -> None:
    model = Model()
    history = History(MemoryEngine(), str)
    open_now = Transactions(history)
    ids = {OWNER: open_now.begin(1, 1, 60.0)}
    for number, (what, which) in enumerate(steps):
        part = sorted(model.written)[which % len(model.written)]
        match what:
            case "write":
                model.written[part][number] = b"%d" % number
                open_now.write(ids[part], [(b"%d" % number, b"")], [])
            case "share":
                ids[model.share(part)] = open_now.share(ids[part], 1, 1)
            case "join" if part != OWNER:
                outer = model.within[part]
                model.written[outer] |= model.end(part)
                open_now.join(ids[part], 1, 1)
            case "retract" if part != OWNER:
                model.end(part)
                open_now.retract(ids[part], 1, 1)
            case "undo":
                # At once: what came before it stands, in whatever part.
                open_now.undo(ids[part], open_now.savepoint(ids[part]))
            case "hand over":
                state = open_now.hand_over()
                open_now = Transactions(history)
                open_now.take_over(state)
    assert [key for key, _ in open_now.take(ids[OWNER], 1, 1).writes] == model.stands()


def test_undo_in_a_part_leaves_what_was_written_beside_it() -> None:
    open_now = Transactions(History(MemoryEngine(), str))
    whole = open_now.begin(1, 1, 60.0)
    one, two = open_now.share(whole, 1, 1), open_now.share(whole, 1, 1)
    mark = open_now.savepoint(one)
    within = open_now.share(one, 1, 1)
    for part, key in ((one, b"1"), (two, b"2"), (within, b"3"), (whole, b"4")):
        open_now.write(part, [(key, b"")], [])
    open_now.undo(one, mark)
    open_now.write(one, [(b"5", b"")], [])
    assert [key for key, _ in open_now.take(whole, 1, 1).writes] == [b"2", b"4", b"5"]


class OpenBefore(msgspec.Struct, array_like=True):
    """As the version hands it over that did not know who wrote what."""

    badge: int
    client: int
    began: int
    seconds: float
    log: list[tuple[bytes, bytes | None]]
    reads: dict[bytes, int]
    ranges: list[Range]
    size: int
    ends: float
    parts: dict[bytes, transactions.Part]
    expected: bool


def test_what_an_older_version_hands_over_is_taken_over() -> None:
    part = transactions.Part(1, 1, 1, b"")
    inner = transactions.Part(2, 1, 1, b"p" * 16)
    log = [(key, b"") for key in (b"a", b"b", b"i")]
    parts = {b"p" * 16: part, b"i" * 16: inner}
    before = OpenBefore(1, 1, 0, 60.0, [*log], {}, [], 0, 0.0, parts, False)
    open_now = Transactions(History(MemoryEngine(), str))
    open_now.take_over(msgspec.msgpack.encode({b"t" * 16: before}))
    open_now.retract(b"i" * 16, 1, 1)
    open_now.write(b"p" * 16, [(b"c", b"")], [])
    open_now.write(b"t" * 16, [(b"d", b"")], [])
    assert [key for key, _ in open_now._open[b"t" * 16].writes] == [b"a", b"b", b"c", b"d"]
    open_now.retract(b"p" * 16, 1, 1)
    assert [key for key, _ in open_now.take(b"t" * 16, 1, 1).writes] == [b"a", b"d"]


# whole or not at all ----------------------------------------------------------------------------------------------


async def test_a_commit_that_is_refused_has_added_nothing(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        transaction = await store.begin(60.0)
        await store.commit([Write(b"before", b"")], transaction=transaction)
        half = [bytes(900_000)] * 10
        with pytest.raises(TooLarge):
            await store.commit(
                [Write(b"%d" % number, value) for number, value in enumerate(half * 2)],
                [Range(b"", b"", await store.head())],
                transaction=transaction,
            )
        await store.commit(
            [Write(b"after%d" % number, value) for number, value in enumerate(half)], transaction=transaction
        )
        await store.finish(transaction)
        assert await store.get(b"0") is None
        assert await store.get(b"before") is not None and await store.get(b"after9") is not None
