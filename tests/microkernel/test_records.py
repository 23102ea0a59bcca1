"""Rows and intents: keys sort as fields do, rows read back, what has no outcome is undone."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.system.records import (
    TABLES,
    EventRow,
    IntentRow,
    LogRow,
    ProcessRow,
    RefusalRow,
    Row,
    after,
    decode,
    encode_key,
)
from atoll.microkernel.changes import Batch, Changes, Found, load
from atoll.microkernel.intents import DONE, UNDONE, EndProcess, intend, settle, settle_left

PARTS = st.one_of(
    st.tuples(st.integers(0, 2**64 - 1), st.text()), st.tuples(st.integers(0, 3), st.text("\0\1a\xff"))
)


class ModelStore:
    """`Records` in memory: one revision a commit, an id commits once."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.seen: dict[bytes, int] = {}
        self.revision = 0

    async def commit(self, changes: Changes) -> int:
        if changes.id in self.seen:
            return self.seen[changes.id]
        self.revision += 1
        for key, value in changes.writes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        self.seen[changes.id] = self.revision
        return self.revision

    async def range(self, prefix: bytes) -> AsyncIterator[Found]:
        end = after(prefix)
        for key in sorted(self.rows):
            if prefix <= key and (not end or key < end):
                yield Found(key=key, value=self.rows[key])


def test_a_row_with_a_field_that_is_no_more_is_read_without_it() -> None:
    now = ProcessRow(boot=1, process=2, server="counter", version="v", pid=3, started=4, uid=5)
    then = msgspec.msgpack.encode({**msgspec.to_builtins(now), "start_ticks": 0, "cgroup": ""})
    assert decode(ProcessRow, then) == now


@given(PARTS, PARTS)
def test_keys_sort_as_their_fields(one: tuple[int, str], other: tuple[int, str]) -> None:
    fields = (one[0], one[1].encode()), (other[0], other[1].encode())
    assert (encode_key(one) < encode_key(other)) == (fields[0] < fields[1])
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(PARTS, st.text())
def test_a_key_says_what_it_is_made_of(numbered: tuple[int, str], more: str) -> None:
    number, text = numbered
    for table, parts in ((LogRow, (text, number, 7)), (RefusalRow, (number, text, more))):
        assert table.parts_of(table.key_of(*parts)) == list(parts)
        for wrong in (table.key_of(*parts[:2]), table.key_of(*parts) + b"\0"):
            with pytest.raises(ValueError, match="no key of"):
                table.parts_of(wrong)


@given(st.binary(), st.binary())
def test_after_is_past_all_with_the_prefix_and_nothing_else(prefix: bytes, key: bytes) -> None:
    end = after(prefix)
    assert (prefix <= key and (not end or key < end)) == key.startswith(prefix)


def test_every_table_has_a_letter_of_its_own_and_its_key_fields() -> None:
    assert len({table.table for table in TABLES}) == len(TABLES)
    assert set(TABLES) == {row for row in Row.__subclasses__() if row.__module__ == Row.__module__}
    for table in TABLES:
        assert len(table.table) == 1
        assert set(table.key_fields) <= {field.name for field in msgspec.structs.fields(table)}


def log(server: str, sequence: int) -> LogRow:
    return LogRow(server=server, boot=1, sequence=sequence, time=0, level="info", text="line")


async def test_rows_of_one_server_are_a_range() -> None:
    store = ModelStore()
    rows = [log("a", 1), log("a", 2), log("ab", 1), log("b", 1)]
    await store.commit(Batch(b"1").put(*reversed(rows)).changes())
    assert await load(store, LogRow, "a") == rows[:2]
    assert await load(store, LogRow) == rows
    await store.commit(Batch(b"2").delete(LogRow, "a", 1, 1).changes())
    assert await load(store, LogRow, "a") == rows[1:2]


async def test_the_same_call_commits_once() -> None:
    store = ModelStore()
    changes = Batch(b"boot 1, call 5").put(log("a", 1)).changes()
    assert await store.commit(changes) == await store.commit(changes) == 1
    assert await store.commit(Batch(b"boot 1, call 6").put(log("a", 1)).changes()) == 2


def test_a_batch_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="LogRow has the key"):
        Batch(b"1").delete(LogRow, "a")


def test_an_older_row_reads_with_the_default_of_a_newer_field() -> None:
    old = {"boot": 1, "sequence": 2, "time": 3, "kind": "k", "who": "w", "sentence": "s"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=EventRow).fields == {}


def ending(server: str) -> EndProcess:
    return EndProcess(server, 1, "m")


async def test_what_an_earlier_boot_left_without_outcome_is_undone() -> None:
    store = ModelStore()
    intents = [
        intend(1, 1, ending("a"), 5),
        intend(1, 2, EndProcess("counter", 3, "m"), 6),
        intend(2, 1, ending("b"), 7),
        intend(3, 1, ending("c"), 8),
    ]
    await store.commit(Batch(b"1").put(*intents).changes())
    await store.commit(settle(Batch(b"2"), intents[0], DONE).changes())
    for _ in range(2):  # a crash before the commit has it said again
        batch = Batch(b"boot 3")
        await settle_left(store, 3, batch)
        assert [row.outcome for row in await load(store, IntentRow)] == [DONE, "", "", ""]
    await store.commit(batch.changes())
    assert [row.outcome for row in await load(store, IntentRow)] == [DONE, UNDONE, UNDONE, ""]
    again = Batch(b"boot 4")
    await settle_left(store, 3, again)
    assert not again


async def test_an_intent_of_a_newer_release_is_not_guessed_at() -> None:
    store = ModelStore()
    row = intend(1, 1, ending("a"), 5)
    newer = msgspec.structs.replace(row, undo=msgspec.msgpack.encode({"type": "Levitate"}))
    await store.commit(Batch(b"1").put(newer).changes())
    with pytest.raises(msgspec.ValidationError, match="Invalid value 'Levitate'"):
        await settle_left(store, 2, Batch(b"2"))
