"""What is taken can be read again and told, and nobody has the store hold more than it should: bounds on bytes, not on
counts alone."""

from pathlib import Path

import msgspec
import pytest

from atoll.ipc.errors import BadRequest, Conflict, Overloaded, TooLarge
from atoll.ipc.limits import MAX_PAYLOAD
from atoll.ipc.serve import bind
from atoll.ipc.system.state import Change, Expect, Item, Provenance, State, Write
from atoll.ipc.whole_changes import whole
from atoll.servers.state import history, layout, transactions
from atoll.servers.state.group import NOTE_MOST, ROW_MOST
from atoll.servers.state.history import PAGE_BYTES
from atoll.servers.state.opening import Settings
from atoll.servers.state.server import Server

from .direct import Node
from .history_kit import Kit, key
from .test_server import ALL, folder, serving

__all__ = ["folder"]

MESSAGE = 1 << 20
"""What a channel of the usual shape carries."""


async def test_the_largest_row_goes_into_each_answer(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("k" * 100), ALL)
        key = b"k" * 400
        with pytest.raises(TooLarge, match="cut it into several rows"):
            await store.commit([Write(key, bytes(ROW_MOST - 399))])
        with pytest.raises(TooLarge, match="a note has"):
            await store.commit([Write(key, b"")], note="n" * (NOTE_MOST + 1))
        transaction = await store.begin(60.0)
        with pytest.raises(TooLarge, match="cut it into several rows"):
            await store.commit([Write(key, bytes(ROW_MOST - 399))], transaction=transaction)
        await store.commit([Write(key, bytes(ROW_MOST - 400))], note="n" * NOTE_MOST)
        feed = aiter(store.watch(0))
        for told in (await store.range(b""), await store.history(key), await anext(feed)):
            assert len(msgspec.msgpack.encode(told)) < MESSAGE
        await feed.aclose()


async def test_a_note_counts_by_its_bytes(folder: Path) -> None:
    """A transaction that the engine would refuse has everybody's group broken up."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        note = "\U0001f600" * (NOTE_MOST // 4)
        sizes = [1_000_000] * 16
        around = len(note) + 256 + 17 * (4 * (layout.KEYSPACE_SIZE + 2) + 160)
        sizes.append((16 << 20) - sum(sizes) - around)
        before = (await store.statistics())["groups"]
        async with node.batch():
            large = store.commit.start(
                [Write(b"%02d" % n, bytes(size)) for n, size in enumerate(sizes)], note=note
            )
            small = [store.commit.start([Write(b"small %d" % number, b"")]) for number in range(3)]
        with pytest.raises(TooLarge, match="in parts"):
            await large
        for each in small:
            await each
        assert (await store.statistics())["groups"] == before + 1


async def test_an_id_that_is_too_long_is_refused_and_keeps_nobody_from_the_group(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL | {"append"})
        before = (await store.statistics())["groups"]
        for size in (65, 600):
            transaction = await store.begin(60.0)
            await store.commit([Write(b"a", b"")], transaction=transaction)
            async with node.batch():
                refused = [
                    store.finish.start(transaction, id=bytes(size)),
                    store.commit.start([Write(b"a", b"")], id=bytes(size)),
                    store.append.start([Write(b"b", b"")], id=bytes(size)),
                ]
                taken = [store.commit.start([Write(b"c%d" % number, b"")]) for number in range(3)]
            for each in refused:
                with pytest.raises(BadRequest, match="64 bytes"):
                    await each
            assert len({(await each).revision for each in taken}) == 3
        assert (await store.statistics())["groups"] == before + 2
        await store.commit([Write(b"a", b"")], id=bytes(64))


@pytest.mark.parametrize("rights", [{"read", "write"}, {"read", "write", "history"}])
async def test_a_large_transaction_is_told_in_parts(folder: Path, rights: set[str]) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), rights)
        before = (await store.commit([Write(b"before", b"")])).revision
        rows = {b"k%d" % number: bytes(PAGE_BYTES // 2 - 100) for number in range(5)}
        large = (await store.commit([Write(key, value) for key, value in rows.items()])).revision
        await store.commit([Write(b"after", b"")])

        async def told(after: int, count: int) -> list[Change]:
            feed = aiter(store.watch(after))
            found = [await anext(feed) for _ in range(count)]
            await feed.aclose()
            return found

        parts = await told(before, 4)
        assert [part.revision for part in parts] == [large] * 3 + [large + 1]
        assert [part.more for part in parts] == [True, True, False, False]
        assert [part.position for part in parts] == [before, before, large, large + 1]
        assert {item.key: item.value for part in parts[:3] for item in part.items} == rows
        assert await told(parts[2].position, 1) == parts[3:]
        # As it is told to one who has caught up.
        feed = aiter(store.watch(large + 1))
        again = (await store.commit([Write(key, value) for key, value in rows.items()])).revision
        assert [(part.revision, len(part.items)) for part in [await anext(feed) for _ in range(3)]] == [
            (again, 2),
            (again, 2),
            (again, 1),
        ]
        await feed.aclose()
        if "history" in rights:
            listed = [change async for change in store.changes(before, large)]
            assert listed == parts[:3]


async def test_parts_are_put_together_also_if_the_feed_broke_off() -> None:
    who = Provenance(1, "one", "1:1", 0, 5, "")
    one, two = Item(b"a", b"1", 7, 5), Item(b"b", b"2", 7, 5)
    parts = [Change(7, 5, [one], who, more=True, position=6), Change(7, 5, [two], who, position=7)]

    async def feed() -> "object":
        for part in (parts[0], *parts, Change(8, 6, [], who, position=8)):
            yield part  # type: ignore[misc]

    told = [change async for change in whole(feed())]  # type: ignore[arg-type]
    assert [(change.revision, change.items) for change in told] == [(7, [one, two]), (8, [])]
    assert not told[0].more


async def test_parts_of_which_the_rest_never_comes_are_not_put_to_the_next_transaction() -> None:
    """The feed broke off in it, and when it goes on all of it was deleted: who watches what is put hears no more of it."""
    one, other = (Provenance(1, name, "1:1", 0, 5, "") for name in ("one", "other"))
    item = Item(b"a", b"1", 7, 5)
    following = Change(9, 6, [Item(b"b", b"2", 9, 6)], other, position=9)

    async def feed() -> "object":
        for part in (Change(7, 5, [item], one, more=True, position=6), following):
            yield part  # type: ignore[misc]

    told = [change async for change in whole(feed())]  # type: ignore[arg-type]
    assert told == [Change(7, 5, [item], one, position=7), following]


def test_parts_have_an_end_also_where_the_rest_was_deleted_meanwhile(kit: Kit) -> None:
    """Who watches what is put, without the right to the past, is told rows as they are when each part is read."""
    rows = {f"k{number}": bytes(PAGE_BYTES // 2 - 100).decode() for number in range(3)}
    large = kit.commit({**rows})
    parts = kit.history.parts(kit.base + large, key(""), past=False, only="puts")
    first = next(parts)
    assert first.more and len(first.items) == 2
    kit.commit({"k2": None})
    (end,) = parts
    assert (end.revision, end.items, end.more, end.position) == (
        kit.base + large,
        [],
        False,
        kit.base + large,
    )


async def test_values_that_stand_for_the_past_are_no_more_than_a_page(folder: Path) -> None:
    """Who may not see the past is told what is there now: of many small rows that may be much."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), {"read", "write"})
        small = (await store.commit([Write(b"k%d" % number, b"") for number in range(20)])).revision
        for number in range(20):
            await store.commit([Write(b"k%d" % number, bytes(PAGE_BYTES // 2 - 100))])
        feed = aiter(store.watch(small - 1))
        parts = [await anext(feed) for _ in range(10)]
        await feed.aclose()
        assert [(part.revision, len(part.items)) for part in parts] == [(small, 2)] * 10


async def test_the_history_of_a_key_is_bounded_in_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert history.HISTORY_BYTES == MAX_PAYLOAD
    monkeypatch.setattr(history, "HISTORY_BYTES", 10_050)
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        for _ in range(12):
            await store.commit([Write(b"k", bytes(999))])
        with pytest.raises(TooLarge, match="ask for fewer versions"):
            await store.history(b"k")
        assert len(await store.history(b"k", 10)) == 10


async def test_what_a_transaction_wrote_itself_is_told_in_pages(folder: Path) -> None:
    """Before, all of it was in one answer, which no channel of a node carries from a mebibyte on."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        await store.commit([Write(b"b", bytes(400_000)), Write(b"f", bytes(400_000)), Write(b"gone", b"")])
        transaction = await store.begin(60.0)
        for name in (b"a", b"c", b"d", b"e"):
            await store.commit([Write(name, bytes(ROW_MOST // 2))], transaction=transaction)
        await store.commit([Write(b"gone")], transaction=transaction)
        found, here, more = [], b"", True
        while more:
            page = await store.scan(transaction, here, b"")
            assert len(msgspec.msgpack.encode(page)) < MESSAGE
            found += [item.key for item in page.items]
            here, more = page.rest, page.more
        assert found == [b"a", b"b", b"c", b"d", b"e", b"f"]
        # All of it was seen, whichever page told it.
        await store.commit([Write(b"dd", b"1")])
        with pytest.raises(Conflict, match="dd"):
            await store.finish(transaction)


async def test_open_transactions_of_a_keyspace_are_bounded_in_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "OPEN_BYTES", 1_000_000)
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        other = node.proxy(State, await kernel.make_keyspace("two"), ALL)
        begun = [await store.begin(60.0) for _ in range(3)]
        large = [Write(b"k", bytes(400_000))]
        await store.commit(large, transaction=begun[0])
        await store.commit(large, transaction=begun[1])
        state = node.endpoint.server.hand_over()
        with pytest.raises(Overloaded, match="bytes in open transactions"):
            await store.commit(large, transaction=begun[2])
        await other.commit(large, transaction=await other.begin(60.0))
        await store.abort(begun[0])
        await store.commit(large, transaction=begun[2])
    # What was handed over counts, too.
    endpoint = bind(Server, {"config": Settings(folder=str(folder), map_size=1 << 30)})
    endpoint.server.take_over(state)
    await endpoint.server.start()
    store = Node(endpoint).proxy(State, 1, ALL)
    with pytest.raises(Overloaded):
        await store.commit(large, transaction=begun[2])
    await store.finish(begun[0])
    await store.commit(large, transaction=begun[2])
    await endpoint.server.stop()


async def test_what_was_undone_holds_nothing(folder: Path) -> None:
    """However often a call under a transaction has to be made again, it may write as much as the first time."""
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        large = [Write(b"%d" % number, bytes(1_000_000)) for number in range(10)]
        transaction = await store.begin(60.0)
        for _ in range(2):
            part = await store.share(transaction)
            await store.commit(large, transaction=part)
            await store.retract(part)
        for _ in range(2):
            savepoint = await store.savepoint(transaction)
            await store.commit(large, transaction=transaction)
            await store.undo(transaction, savepoint)
        await store.commit(large, transaction=transaction)
        await store.finish(transaction)
        assert len((await store.range(b"")).items) == 1
        server = node.endpoint.server
        assert isinstance(server, Server)
        assert not server._transactions._sizes


async def test_what_is_over_holds_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody begins another one, which would find it."""
    monkeypatch.setattr(transactions, "OPEN_BYTES", 1_000_000)
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        begun = [await store.begin(seconds) for seconds in (10.0, 10.0, 60.0)]
        large = [Write(b"k", bytes(400_000))]
        await store.commit(large, transaction=begun[0])
        await store.commit(large, transaction=begun[1])
        server = node.endpoint.server
        assert isinstance(server, Server)
        open_ones = server._transactions
        monkeypatch.setattr(open_ones, "_now", lambda now=open_ones._now: now() + 30.0)
        await store.commit(large, transaction=begun[2])
        assert (await kernel.statistics())["transactions"] == 1


async def test_what_is_said_of_a_pin_is_bounded(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), {*ALL, "pin"})
        await store.commit([Write(b"k", b"")])
        with pytest.raises(BadRequest, match="pin: why"):
            await store.pin("p", why="w" * 1001)
        await store.pin("p", why="w" * 1000)


# speed, counted ---------------------------------------------------------------------------------------------------


async def test_a_commit_that_only_expects_costs_nobody_a_checkpoint(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        await store.commit([Write(b"k", b"v")])
        before = (await store.statistics())["checkpoints"]
        for _ in range(20):
            await store.commit([], [Expect(b"none", 0)])
            await store.commit([Write(b"k", b"v")])
        assert (await store.statistics())["checkpoints"] == before


async def test_the_time_of_a_transaction_is_looked_up_once_for_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        await store.commit([Write(b"%03d" % number, b"v") for number in range(500)])
        looked: list[bytes] = []
        real = layout.time_of

        def time_of(raw: bytes) -> int:
            looked.append(raw)
            return real(raw)

        monkeypatch.setattr(layout, "time_of", time_of)
        page = await store.range(b"")
        assert len(page.items) == 500 and len({item.time for item in page.items}) == 1
        assert len(looked) == 1


# the past, through another ----------------------------------------------------------------------------------------


async def test_a_transaction_that_was_committed_leads_only_its_owner_back(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        theirs = node.proxy(State, await kernel.make_keyspace("theirs"), ALL, client=9)
        owner = node.proxy(State, await kernel.make_keyspace("owner"), {"read", "write"}, client=5)
        await theirs.commit([Write(b"note", b"a secret")])
        await owner.commit([Write(b"k", b"first")], id=b"then")
        await owner.commit([Write(b"k", b"second")])
        await theirs.commit([Write(b"note", None)])
        transaction = await owner.begin(10.0, b"then")
        part = await owner.share(transaction)
        assert await theirs.read(part, b"note") is None
        assert (await theirs.scan(part, b"")).items == []
        # Its owner sees what it saw then: here before it wrote `k`.
        assert await owner.read(transaction, b"k") is None
        done = await owner.finish(transaction, id=b"then")
        assert done.repeated
