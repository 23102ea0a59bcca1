"""What every engine promises: see `atoll.servers.state.engine`."""

from pathlib import Path

import pytest

from atoll.servers.state.engine import Batch, BatchTooLarge, ConditionFailed, Engine, Full, Table
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine

from .store_engines import Store


def batch(
    *puts: tuple[bytes, bytes],
    table: Table = Table.VERSIONS,
    deletes: tuple[bytes, ...] = (),
    events: tuple[int, ...] = (),
) -> Batch:
    made = Batch()
    for key, value in puts:
        made.put(table, key, value)
    for key in deletes:
        made.delete(table, key)
    for position in events:
        made.append(position, b"event %d" % position)
    return made


def rows(engine: Engine, table: Table = Table.VERSIONS) -> list[tuple[bytes, bytes]]:
    with engine.snapshot() as snapshot:
        cursor = snapshot.cursor(table)
        row = cursor.seek(b"")
        found = []
        while row is not None:
            found.append(row)
            row = cursor.next()
        return found


def test_rows_come_back_in_the_order_of_their_bytes(engine: Engine) -> None:
    engine.commit(batch((b"b", b"2"), (b"\xff", b"4"), (b"a", b"1"), (b"b\0", b"3")))
    assert rows(engine) == [(b"a", b"1"), (b"b", b"2"), (b"b\0", b"3"), (b"\xff", b"4")]


def test_the_last_put_of_a_key_wins_and_deletes_come_after_puts(engine: Engine) -> None:
    engine.commit(batch((b"a", b"1"), (b"a", b"2"), (b"b", b"1"), deletes=(b"b", b"absent")))
    assert rows(engine) == [(b"a", b"2")]


def test_tables_are_apart(engine: Engine) -> None:
    engine.commit(batch((b"a", b"1"), table=Table.META))
    engine.commit(batch((b"a", b"2"), table=Table.COMMITS))
    with engine.snapshot() as snapshot:
        assert snapshot.get(Table.META, b"a") == b"1"
        assert snapshot.get(Table.COMMITS, b"a") == b"2"
        assert snapshot.get(Table.VERSIONS, b"a") is None


def test_a_snapshot_does_not_see_later_batches(engine: Engine) -> None:
    engine.commit(batch((b"a", b"1"), (b"c", b"1"), events=(1,)))
    with engine.snapshot() as snapshot:
        engine.commit(batch((b"a", b"2"), (b"b", b"2"), deletes=(b"c",), events=(2,)))
        assert snapshot.get(Table.VERSIONS, b"a") == b"1"
        assert snapshot.get(Table.VERSIONS, b"b") is None
        assert snapshot.cursor(Table.VERSIONS).seek(b"b") == (b"c", b"1")
        assert snapshot.cursor(Table.VERSIONS).seek_before(None) == (b"c", b"1")
        assert list(snapshot.feed(0)) == [(1, b"event 1")]
        assert snapshot.bounds() == (1, 1)
        assert snapshot.event(2) is None
    assert rows(engine) == [(b"a", b"2"), (b"b", b"2")]


def test_a_failed_condition_names_itself_and_nothing_is_applied(engine: Engine) -> None:
    engine.commit(batch((b"a", b"1"), events=(1,)))
    refused = batch((b"b", b"2"), deletes=(b"a",), events=(2,))
    refused.require(Table.VERSIONS, b"a", b"1")
    refused.require(Table.VERSIONS, b"c", b"there")
    with pytest.raises(ConditionFailed) as failed:
        engine.commit(refused)
    assert failed.value.condition.key == b"c"
    assert failed.value.found is None
    assert rows(engine) == [(b"a", b"1")]
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (1, 1)


def test_a_condition_of_absence_holds_only_while_absent(engine: Engine) -> None:
    first = batch((b"a", b"1"))
    first.require(Table.VERSIONS, b"a", None)
    engine.commit(first)
    again = batch((b"a", b"2"))
    again.require(Table.VERSIONS, b"a", None)
    with pytest.raises(ConditionFailed):
        engine.commit(again)


def test_too_large_a_batch_or_key_is_refused_and_nothing_is_applied(engine: Engine) -> None:
    with pytest.raises(BatchTooLarge):
        engine.commit(batch((b"a", b"1"), (b"b", bytes(engine.maximum_batch))))
    with pytest.raises(BatchTooLarge):
        engine.commit(batch((b"a", b"1"), (b"k" * (engine.maximum_key + 1), b"")))
    assert rows(engine) == []


def test_too_many_operations_are_refused_and_nothing_is_applied(engine: Engine) -> None:
    engine.commit(batch((b"a", b"1"), events=(1,)))
    full = batch((b"a", b"2"), (b"b", b"2"), deletes=(b"a",), events=(2,))
    full.require(Table.VERSIONS, b"a", b"1")
    for position in range(3, 3 + engine.maximum_operations - full.operations):
        full.drop(position)
    over = batch((b"c", b"3"), events=(2,))
    over.drops = [*full.drops, 1, 1, 1, 1]
    assert (full.operations, over.operations) == (engine.maximum_operations, engine.maximum_operations + 1)
    with pytest.raises(BatchTooLarge, match=str(engine.maximum_operations)):
        engine.commit(over)
    assert rows(engine) == [(b"a", b"1")]
    engine.commit(full)
    assert rows(engine) == [(b"b", b"2")]


def test_cursors_step_and_seek_both_ways(engine: Engine) -> None:
    engine.commit(batch(*((b"%d" % digit, b"") for digit in range(5))))
    with engine.snapshot() as snapshot:
        cursor = snapshot.cursor(Table.VERSIONS)
        assert cursor.seek(b"11") == (b"2", b"")
        assert cursor.next() == (b"3", b"")
        assert cursor.seek_before(b"3") == (b"2", b"")
        assert cursor.seek_before(b"0") is None
        assert cursor.seek_before(None) == (b"4", b"")
        assert cursor.seek(b"5") is None
        assert cursor.seek_before(b"9") == (b"4", b"")
        assert cursor.next() is None


def test_the_feed_is_ordered_and_read_from_a_position(store: Store) -> None:
    store.engine.commit(batch(events=(1, 2, 5)))
    store.engine.commit(batch(events=(6,)))
    with store.reopen().snapshot() as snapshot:
        assert [position for position, _ in snapshot.feed(2)] == [5, 6]
        assert snapshot.event(5) == b"event 5"
        assert snapshot.event(3) is None
        assert snapshot.bounds() == (1, 6)


def test_events_can_be_dropped_one_by_one(store: Store) -> None:
    store.engine.commit(batch(events=(1, 2, 3, 4)))
    dropping = batch((b"a", b"1"))
    for position in (1, 3, 7):
        dropping.drop(position)
    with store.engine.snapshot() as before:
        store.engine.commit(dropping)
        assert [position for position, _ in before.feed(0)] == [1, 2, 3, 4]
        assert (before.event(3), before.bounds()) == (b"event 3", (1, 4))
    store.engine.commit(batch(events=(5,)))
    with store.reopen().snapshot() as after:
        assert [position for position, _ in after.feed(0)] == [2, 4, 5]
        assert (after.event(3), after.bounds()) == (None, (2, 5))


@pytest.mark.parametrize("positions", [(2,), (1,), (4, 3), (3, 3)])
def test_an_event_out_of_order_is_a_bug_and_refused(engine: Engine, positions: tuple[int, ...]) -> None:
    engine.commit(batch(events=(2,)))
    with pytest.raises(ValueError, match="come after"):
        engine.commit(batch((b"a", b"1"), events=positions))
    assert rows(engine) == []


def test_an_empty_feed_has_no_bounds(engine: Engine) -> None:
    with engine.snapshot() as snapshot:
        assert snapshot.bounds() == (0, 0)
        assert list(snapshot.feed(0)) == []


def test_what_was_committed_is_there_after_reopening(store: Store) -> None:
    store.engine.commit(batch((b"a", b"1" * 100_000), events=(1,)))
    assert rows(store.reopen()) == [(b"a", b"1" * 100_000)]


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_the_limit_refuses_and_the_reserve_still_takes(kind: str, tmp_path: Path) -> None:
    limit, reserve = 24 << 20, 6 << 20
    engine: Engine
    if kind == "lmdb":
        engine = LmdbEngine(tmp_path / "store", limit=limit, reserve=reserve, map_size=1 << 30)
    else:
        engine = MemoryEngine(limit=limit, reserve=reserve)
    written = fill(engine, b"", reserved=False)
    assert written > 10
    engine.commit(batch((b"kernel", b"a revocation")), reserved=True)
    assert len(rows(engine)) == written + 1
    assert fill(engine, b"kernel ", reserved=True) > 10
    assert (b"kernel", b"a revocation") in rows(engine)
    engine.close()


def fill(engine: Engine, prefix: bytes, *, reserved: bool) -> int:
    """Commits rows until the engine is full; how many it took."""
    for number in range(10_000):
        try:
            engine.commit(batch((prefix + b"%06d" % number, bytes(200_000))), reserved=reserved)
        except Full:
            return number
    raise AssertionError("the engine never was full")
