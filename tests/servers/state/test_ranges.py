"""What a transaction says of ranges of keys is held against what was written in one go, however many there are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.errors import Conflict, TooLarge
from atoll.ipc.system.state import Expect, Range, State, Write
from atoll.servers.state import group, layout, ranges

from .test_server import ALL, folder, serving

__all__ = ["folder"]

KEYS = st.binary(min_size=1, max_size=2)
RANGES = st.lists(st.builds(Range, KEYS, KEYS, st.integers(0, 9)), max_size=12)


@given(RANGES, KEYS)
def test_a_key_is_held_against_each_range_that_it_is_in(each: list[Range], key: bytes) -> None:
    said = [one.revision for one in each if one.start <= key < one.end]
    mapped = ranges.Ranges(each)
    assert mapped.revision_of(key) == min(said, default=None)
    apart = [one.revision for one in mapped if one.start <= key < one.end]
    assert apart == ([min(said)] if said else [])


@given(RANGES, KEYS)
def test_ranges_that_are_noted_say_the_same(each: list[Range], key: bytes) -> None:
    noted: list[Range] = []
    for one in each:
        ranges.note(noted, one)
    assert ranges.Ranges(noted).revision_of(key) == ranges.Ranges(each).revision_of(key)


async def test_the_feed_is_read_once_for_all_ranges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        for number in range(20):
            await store.commit([Write(b"k%d" % number, b"v")])
        looked: list[bytes] = []
        real = layout.entry_of

        def entry_of(raw: bytes) -> layout.Entry:
            looked.append(raw)
            return real(raw)

        monkeypatch.setattr(layout, "entry_of", entry_of)
        head = await store.head()
        many = [Range(b"z%03d" % number, b"z%03d~" % number, head - 15) for number in range(500)]
        await store.commit([Write(b"x", b"v")], many)
        assert len(looked) == 15
        with pytest.raises(Conflict, match="k19"):
            await store.commit([Write(b"x", b"v")], [*many, Range(b"k19", b"k2", head - 2)])
        monkeypatch.setattr(group, "_WINDOW", 0)
        await store.commit([Write(b"x", b"v")], many)
        with pytest.raises(Conflict, match="k19"):
            await store.commit([Write(b"x", b"v")], [*many, Range(b"k19", b"k2", head - 2)])


async def test_there_is_a_bound_on_what_is_expected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        head = await store.head()
        many = [Range(b"%05d" % number, b"%05d~" % number, head) for number in range(ranges.MOST + 1)]
        with pytest.raises(TooLarge, match="has 1025 ranges, and 1024 is the limit: commit it in parts"):
            await store.commit([Write(b"x", b"v")], many)
        transaction = await store.begin(60.0)
        with pytest.raises(TooLarge, match="1025 ranges"):
            await store.commit([], many, transaction=transaction)
        monkeypatch.setattr(group, "_EXPECTS_MOST", 10)
        with pytest.raises(TooLarge, match="has 11 expectations, and 10 is the limit"):
            await store.commit([Write(b"x", b"v")], [Expect(b"%d" % number, 0) for number in range(11)])


async def test_the_pages_of_a_scan_are_one_range(folder: Path) -> None:
    async with serving(folder) as (node, kernel):
        store = node.proxy(State, await kernel.make_keyspace("one"), ALL)
        await store.commit([Write(b"%04d" % number, b"v") for number in range(2 * ranges.MOST)])
        transaction = await store.begin(60.0)
        at, seen = b"", 0
        while True:
            page = await store.scan(transaction, at, limit=1)
            seen += len(page.items)
            if not page.more:
                break
            at = page.rest
        assert seen == 2 * ranges.MOST
        await store.commit([Write(b"0001", b"w")])
        await store.commit([Write(b"x", b"w")], transaction=transaction)
        with pytest.raises(Conflict):
            await store.finish(transaction)
