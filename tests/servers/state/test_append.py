"""The right `append`: rows are added and stay as they are, whatever their holder tries, in a transaction as well."""

from collections.abc import Callable
from pathlib import Path
from struct import pack
from zlib import crc32

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.context import in_hand
from atoll.ipc.errors import BadRequest, Conflict, NotAllowed
from atoll.ipc.keyspace import Keyspace, settled
from atoll.ipc.memory_store import MemoryStore
from atoll.ipc.origin import CALL
from atoll.ipc.system.state import NEVER, Expect, State, Write
from atoll.ipc.transaction import Transaction
from atoll.servers.state.group import BULK_MOST

from .test_keyspace import hand
from .test_server import ALL, serving

APPEND = {"append"}


@pytest.fixture
def folder(tmp_path: Path, whole: Callable[[Path], int]) -> "Path":
    yield tmp_path / "store"  # type: ignore[misc]
    whole(tmp_path / "store")


async def test_nothing_else_goes(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("audit")
        audit, owner = node.proxy(State, badge, APPEND, client=1), node.proxy(State, badge, ALL, client=2)
        first = await audit.append([Write(b"a", b"1"), Write(b"b", b"2")])
        assert first.revision == 2 and not first.repeated
        other = await audit.append([Write(b"c", b"3")])
        for refused in (
            audit.append([Write(b"a", b"other")]),
            audit.append([Write(b"new", b"1"), Write(b"a", b"other")]),
            audit.append([Write(b"new", b"1"), Write(b"a", b"1")]),
            audit.append([Write(b"a", b"other")], id=b"an id"),
            audit.commit([Write(b"a", b"other")]),
            audit.commit([Write(b"a")]),
            audit.begin(10.0),
            audit.get(b"a"),
            audit.unpin("x"),
        ):
            with pytest.raises(NotAllowed):
                await refused
        for wrong in ([Write(b"a")], [Write(b"new", b"1"), Write(b"new", b"2")]):
            with pytest.raises(BadRequest):
                await audit.append(wrong)
        assert await kernel.head() == other.revision
        assert [(item.key, item.value) for item in (await owner.range(b"")).items] == [
            (b"a", b"1"),
            (b"b", b"2"),
            (b"c", b"3"),
        ]


async def test_what_was_deleted_is_not_written_again(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("audit")
        audit, owner = node.proxy(State, badge, APPEND, client=1), node.proxy(State, badge, ALL, client=2)
        await audit.append([Write(b"a", b"1")])
        await owner.commit([Write(b"a")])
        with pytest.raises(NotAllowed, match="written at revision 3"):
            await audit.append([Write(b"a", b"1")])


async def test_a_row_that_comes_twice_is_one(folder: Path) -> None:
    """As it is sent again after the store's process died over the answer: with an id, and without one."""
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("audit")
        audit = node.proxy(State, badge, APPEND)
        for id in (b"", b"an id"):
            key = b"key" + id
            first = await audit.append([Write(key, b"1")], id, b"reply")
            again = await audit.append([Write(key, b"1")], id, b"reply")
            assert (again.revision, again.time, again.repeated) == (first.revision, first.time, True)
        assert await kernel.head() == 3


async def test_members_of_a_group_see_each_other(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        badge = await kernel.make_keyspace("audit")
        audit, owner = node.proxy(State, badge, APPEND, client=1), node.proxy(State, badge, ALL, client=2)
        async with node.batch():
            first = audit.append.start([Write(b"a", b"1")])
            second = audit.append.start([Write(b"a", b"2")])
            owner.commit.start([Write(b"b")])  # deletes what never was: a version all the same
            third = audit.append.start([Write(b"b", b"2")])
        assert (await first).revision == 2
        for late in (second, third):
            with pytest.raises(NotAllowed):
                await late


async def test_what_is_delivered_again_while_the_first_is_in_hand_has_its_outcome(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        audit = node.proxy(State, await kernel.make_keyspace("audit"), APPEND)
        async with node.batch():
            first = audit.append.start([Write(b"a", b"1")], b"an id")
            again = audit.append.start([Write(b"a", b"2")], b"an id")
        assert (await again).revision == (await first).revision


async def test_a_transaction_that_comes_again_while_the_first_is_in_hand_has_its_outcome(
    folder: Path,
) -> None:
    async with serving(folder) as (node, kernel):
        rows = node.proxy(State, await kernel.make_keyspace("rows"), ALL | APPEND)
        async with node.batch():
            first = await rows.begin(10.0, b"an id")
            await rows.append([Write(b"a", b"1")], transaction=first)
            outcome = rows.finish.start(first, id=b"an id")
            again = await rows.begin(10.0, b"an id")
            await rows.append([Write(b"a", b"2")], transaction=again)
            repeated = rows.finish.start(again, id=b"an id")
        assert (await repeated).repeated
        assert (await repeated).revision == (await outcome).revision


async def test_bulk_that_waits_is_in_hand_as_well(folder: Path) -> None:
    """What is added, or done, once more while the first is waiting for its turn finds what that came to."""
    async with serving(folder) as (node, kernel):
        state = node.proxy(State, await kernel.make_keyspace("rows"), ALL | APPEND)
        rows = state.with_(service="bulk")
        async with node.batch():
            for number in range(3):
                rows.commit.start([Write(b"import %d" % number, bytes(BULK_MOST // 2))])
            first = await rows.begin(10.0, b"an id")
            await rows.append([Write(b"a", b"1")], transaction=first)
            outcome = rows.finish.start(first, id=b"an id")
            again = await rows.begin(10.0, b"an id")
            added = rows.append.start([Write(b"b", b"1")])
            twice = rows.append.start([Write(b"b", b"1")])
        assert (await twice).repeated
        assert (await twice).revision == (await added).revision
        await rows.append([Write(b"a", b"2")], transaction=again)
        repeated = await rows.finish(again, id=b"an id")
        assert (repeated.repeated, repeated.revision) == (True, (await outcome).revision)


async def test_bulk_that_waits_is_held_to_it(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        owner = node.proxy(State, await kernel.make_keyspace("audit"), ALL)
        await owner.commit([Write(b"a", b"1")])
        with pytest.raises(Conflict):
            await owner.commit([Write(b"a", b"2")], [Expect(b"a", NEVER)])
        await owner.commit([Write(b"b", b"2")], [Expect(b"b", NEVER)])


async def test_in_anothers_transaction(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        rows = node.proxy(State, await kernel.make_keyspace("rows"), ALL, client=1)
        badge = await kernel.make_keyspace("audit")
        audit, rival = node.proxy(State, badge, APPEND, client=2), node.proxy(State, badge, APPEND, client=3)
        await audit.append([Write(b"old", b"1")])
        transaction = await rows.begin(10.0)
        part = await rows.share(transaction)
        with pytest.raises(NotAllowed):
            await audit.append([Write(b"old", b"2")], transaction=part)
        with pytest.raises(NotAllowed):
            await audit.commit([Write(b"old", b"2")], transaction=part)
        await audit.append([Write(b"new", b"1")], transaction=part)
        with pytest.raises(Conflict):  # not even what it has just added itself
            await audit.append([Write(b"new", b"2")], transaction=part)
        await rows.join(part)
        await rows.finish(transaction)
        with pytest.raises(NotAllowed):
            await rival.append([Write(b"new", b"2")])

        transaction = await rows.begin(10.0)
        await audit.append([Write(b"raced", b"1")], transaction=transaction)
        await rival.append([Write(b"raced", b"2")])
        with pytest.raises(Conflict):
            await rows.finish(transaction)


async def test_a_row_that_a_transaction_met_is_there_at_its_end(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        rows = node.proxy(State, await kernel.make_keyspace("rows"), ALL | APPEND)
        await rows.append([Write(b"said", b"1"), Write(b"too", b"1")])
        for gone in (False, True):
            transaction = await rows.begin(10.0)
            await rows.append([Write(b"said", b"1"), Write(b"too", b"1")], transaction=transaction)
            await rows.commit([Write(b"of it", b"%d" % gone)], transaction=transaction)
            if not gone:
                await rows.finish(transaction)
                continue
            await rows.commit([Write(b"too")])
            with pytest.raises(Conflict):
                await rows.finish(transaction)
        item = await rows.get(b"of it")
        assert item is not None and item.value == b"0"


async def test_a_row_that_the_transaction_itself_has_deleted_is_not_there(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        rows = node.proxy(State, await kernel.make_keyspace("rows"), ALL | APPEND)
        await rows.append([Write(b"said", b"1")])
        transaction = await rows.begin(10.0)
        await rows.commit([Write(b"said")], transaction=transaction)
        with pytest.raises(Conflict):
            await rows.append([Write(b"said", b"1")], transaction=transaction)


async def test_what_was_undone_may_be_added(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        rows = node.proxy(State, await kernel.make_keyspace("rows"), ALL | APPEND)
        transaction = await rows.begin(10.0)
        assert await rows.read(transaction, b"k") is None
        mark = await rows.savepoint(transaction)
        await rows.append([Write(b"k", b"1")], transaction=transaction)
        await rows.undo(transaction, mark)
        await rows.append([Write(b"k", b"2")], transaction=transaction)
        assert await rows.read(transaction, b"k") is not None
        await rows.finish(transaction)
        item = await rows.get(b"k")
        assert item is not None and item.value == b"2"


Op = tuple[str, bytes, bytes]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "append in a transaction", "put", "delete"]),
            st.sampled_from([b"a", b"b", b"c"]),
            st.sampled_from([b"1", b"2"]),
        ),
        max_size=25,
    )
)
def test_a_version_of_its_own_is_a_keys_first_and_stays(ops: list[Op]) -> None:
    """Against a model: what an appender wrote is the first version of its key, and only a holder of `write` changes that."""

    async def main() -> None:
        store = MemoryStore()
        badge = await store.state().make_keyspace("audit")
        audit, owner = store.state(badge, frozenset(APPEND)), store.state(badge, frozenset(ALL))
        model: dict[bytes, list[bytes | None]] = {}
        for op, key, value in ops:
            past = model.setdefault(key, [])
            if op in ("put", "delete"):
                past.append(value if op == "put" else None)
                await owner.commit([Write(key, past[-1])])
                continue
            transaction = await owner.begin(10.0) if op != "append" else b""
            try:
                done = await audit.append([Write(key, value)], transaction=transaction)
                if transaction:
                    await owner.finish(transaction)
            except NotAllowed:
                assert past and past[-1] != value
                continue
            assert not past or (past[-1] == value and done.repeated)
            past[:] = past or [value]
        for key, past in model.items():
            assert [item.value for item in await owner.history(key)] == past[::-1]

    trio.run(main)


async def test_the_sdk_adds_a_row_once_a_call() -> None:
    store = MemoryStore()
    badge = await store.state().make_keyspace("audit")
    audit = Keyspace[int](store.state(badge, frozenset(APPEND)), int, boot=1)
    with in_hand(hand(1)):
        assert await settled(audit.append("a", 1)) == 2
    with in_hand(hand(1)):  # delivered again: its first outcome, whatever it would add now
        assert await settled(audit.append("a", 2)) == 2
    with in_hand(hand(2)), pytest.raises(NotAllowed):
        await settled(audit.append("a", 2))


async def test_whoever_adds_rows_keeps_nobody_from_writing() -> None:
    """By an id of a commit to come, which can be guessed: that would be taken for one that was made already."""
    store = MemoryStore()
    badge = await store.state().make_keyspace("audit")
    audit = store.state(badge, frozenset(APPEND))
    owner = Keyspace[int](store.state(badge), int, boot=1)
    one, other = (CALL.pack(1, 7, 0, request) for request in (1, 2))
    for number, id in enumerate((one + pack(">II", crc32(b"a"), 0), other + pack(">I", 0))):
        added = await audit.append([Write(b"%d" % number, b"\1")], id=id)
        assert (await audit.append([Write(b"%d" % number, b"\2")], id=id)).revision == added.revision
    with in_hand(hand(1)):
        await settled(owner.put("a", 5))
    with in_hand(hand(2)):
        async with owner.transaction() as tx:
            tx.put("b", 5)
    assert [await owner.get("a"), await owner.get("b")] == [5, 5]


async def test_a_call_that_is_delivered_again_has_its_transaction_whatever_it_would_add_now() -> None:
    store = MemoryStore()
    rows = store.keyspace(int, "rows")
    badge = await store.state().make_keyspace("audit")
    audit = Keyspace[str](store.state(badge, frozenset(APPEND)), str)
    revisions = []
    for value in (1, 2):
        with in_hand(hand(1)):
            async with rows.transaction() as tx:
                tx.append("a", value)
                tx.on(audit).append("1", f"a is {value}")
        revisions.append(tx.revision)
    assert revisions[0] == revisions[1]
    assert (await rows.get("a"), await store.keyspace(str, "audit").get("1")) == (1, "a is 1")
    with in_hand(hand(2)), pytest.raises(Conflict):
        async with rows.transaction() as tx:
            tx.append("a", 2)


async def test_a_transaction_adds_to_another_keyspace_of_its_owner() -> None:
    store = MemoryStore()
    rows = store.keyspace(int, "rows")
    badge = await store.state().make_keyspace("audit")
    audit = Keyspace[str](store.state(badge, frozenset(APPEND)), str)

    async def count(n: int, say: Callable[[Transaction[str]], None]) -> None:
        async with rows.transaction() as tx:
            tx.put("n", n)
            say(tx.on(audit))

    read = store.keyspace(str, "audit")
    await count(1, lambda said: said.append("1", "n is 1"))
    for change in (
        lambda said: said.append("1", "n is 2"),
        lambda said: said.put("1", "n is 2"),
        lambda said: said.delete("1"),
    ):
        assert (await rows.get("n"), await read.get("1")) == (1, "n is 1")
        with pytest.raises(NotAllowed):
            await count(2, change)
    await count(2, lambda said: said.append("2", "n is 2"))
    assert (await rows.get("n"), await read.get("2")) == (2, "n is 2")
