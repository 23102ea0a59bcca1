"""What retention removes and what it never does; pins; the error that names the horizon."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest, NotAllowed, QuotaExceeded
from atoll.ipc.system.state import (
    Ahead,
    Compacted,
    Expect,
    PinExists,
    Range,
    Retention,
    State,
    StoreFull,
    Write,
    absolute,
)
from atoll.servers.state import layout, pins
from atoll.servers.state.check import check
from atoll.servers.state.compaction import _START, _decode
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.ownership import CLAIM
from atoll.servers.state.sweep import WORK
from tests.conformance.store.store_engines import ETCD

from .kept import GRACE, REMEMBER, Kept

AGE = 10.0
READER = """
import sys
from atoll.servers.state.lmdb_engine import LmdbEngine

with LmdbEngine(sys.argv[1], read_only=True, map_size=1 << 30).snapshot():
    print(end=".", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["lmdb", "memory", "memory with etcd's limits"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    if request.param == "lmdb":
        made = Kept(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30, limit=512 << 20))
    else:
        model = MemoryEngine(**({} if request.param == "memory" else ETCD))
        made = Kept(lambda: model)
    yield made
    report = check(made.server._engine)
    made.server._engine.close()
    assert not report.breaches


def put(kept: Kept, state: State, id: bytes = b"", **values: str | None) -> int:
    """A commit a second; its revision."""
    kept.hands.now += 1
    writes = [Write(key.encode(), None if value is None else value.encode()) for key, value in values.items()]
    return state.commit.start(writes, id=id).result().revision


def value(state: State, key: str, as_of: int | float | None = None) -> str | None:
    item = state.get.start(key.encode(), as_of).result()
    return None if item is None or item.value is None else item.value.decode()


def contents(state: State, as_of: int | float | None = None) -> dict[str, str]:
    page = state.range.start(b"", as_of=as_of).result()
    return {item.key.decode(): (item.value or b"").decode() for item in page.items}


def history(state: State, key: str) -> list[str | None]:
    items = state.history.start(key.encode()).result()
    return [None if item.value is None else item.value.decode() for item in items]


def test_what_is_older_than_the_age_is_removed_and_said_to_be(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    first = put(kept, rows, a="1", b="x" * 500)
    second = put(kept, rows, a="2")
    third = put(kept, rows, a="3")
    before = {revision: contents(rows, revision) for revision in (first, second, third)}
    kept.hands.now += AGE - 0.5
    kept.compact()  # `second` is in force until `third`, which is not that old yet
    assert contents(rows, second) == before[second]
    with pytest.raises(Compacted) as gone:
        contents(rows, first)
    assert (gone.value.revision, gone.value.horizon) == (first, second)
    assert str(gone.value) == f"revision {first} is no longer kept: ask for {second} or later"
    kept.hands.now += 5
    kept.compact()
    assert contents(rows, third) == contents(rows) == before[third]
    for past in (
        lambda: value(rows, "a", second),
        lambda: contents(rows, second),
        lambda: rows.range.start(b"", as_of=second, reverse=True).result(),
        lambda: value(rows, "a", 1001.5),
        lambda: rows.revision_at.start(1001.5).result(),
        lambda: rows.who.start(second).result(),
        lambda: rows.commit.start([Write(b"c", b"")], [Range(b"", b"", second)]).result(),
        lambda: kept.server._history.changes(second, layout.prefix(1), 10),
        lambda: next(kept.server._history.parts(third, layout.prefix(1))),
    ):
        with pytest.raises(Compacted) as gone:
            past()
        assert gone.value.horizon == third
    assert history(rows, "a") == ["3"]
    assert value(rows, "b", third) == "x" * 500
    assert value(rows, "a", 1003.25) == "3"
    horizon = rows.horizon.start().result()
    assert (horizon.revision, horizon.versions, horizon.retention) == (third, 2, Retention(age=AGE))
    assert horizon.time == 1003 * 10**9


def test_a_keyspace_without_retention_keeps_all_beside_one_that_keeps_little(kept: Kept) -> None:
    rows, forever = kept.keyspace_state("rows", Retention(age=AGE)), kept.keyspace_state("forever")
    states = {}
    for number in range(20):
        put(kept, rows, a=str(number))
        put(kept, forever, id=b"%d" % number, a=str(number))
        states[kept.hands.now] = number
    kept.hands.now += 100
    kept.compact()
    assert len(history(forever, "a")) == 20
    assert forever.horizon.start().result().revision == 0
    for second, number in states.items():
        # Revisions of `rows` that are gone from the feed stand between these.
        assert value(forever, "a", second) == value(forever, "a", second + 0.5) == str(number)
        at = forever.revision_at.start(second + 0.5).result()
        assert value(forever, "a", at) == str(number)
    assert forever.commit.start([Write(b"a", b"again")], id=b"3").result().repeated


def test_a_time_among_forgotten_revisions_of_another_keyspace(kept: Kept) -> None:
    rows, other = (
        kept.keyspace_state("rows", Retention(age=40.0)),
        kept.keyspace_state("other", Retention(age=0.0)),
    )
    put(kept, rows, a="1")
    horizon = put(kept, rows, a=None)  # which leaves the feed as well
    for number in range(30):  # all but the last, too
        put(kept, other, a=str(number))
    last = put(kept, rows, a="3")
    kept.hands.now += 30
    kept.compact()
    assert rows.horizon.start().result().revision == horizon
    for seconds in range(1002, 1033):
        assert value(rows, "a", seconds + 0.5) is None
        assert value(rows, "a", rows.revision_at.start(seconds + 0.5).result()) is None
    with pytest.raises(Compacted):
        value(rows, "a", 1001.5)
    assert value(rows, "a", last) == "3"


def test_a_pin_holds_its_revision_and_no_time_that_nobody_can_tell(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    pinned = put(kept, rows, a="1")
    rows.pin.start("here", pinned).result()
    for number in range(2, 20):
        put(kept, rows, a=str(number))
    assert value(rows, "a", 1001.5) == "1"
    assert value(rows, "a", 1005.5) == "5"
    kept.hands.now += 100
    kept.compact()
    assert value(rows, "a", pinned) == "1"
    with pytest.raises(Compacted):
        value(rows, "a", 1005.5)


def test_the_newest_versions_are_kept_by_number(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(versions=3))
    revisions = [put(kept, rows, hot=str(number)) for number in range(6)]
    put(kept, rows, cold="1")
    last = put(kept, rows, cold="2")
    kept.hands.now += GRACE
    kept.compact()
    assert history(rows, "hot") == ["5", "4", "3"]
    assert history(rows, "cold") == ["2", "1"]
    assert rows.horizon.start().result().revision == revisions[3]
    assert [value(rows, "hot", revision) for revision in revisions[3:]] == ["3", "4", "5"]
    kept.state().make_keyspace.start("rows", Retention(versions=1)).result()
    kept.compact()
    assert history(rows, "hot") == ["5"]
    assert history(rows, "cold") == ["2"]
    assert rows.horizon.start().result().revision == last


def test_nothing_younger_than_the_grace_is_removed(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=0.0, versions=1))
    revisions = [put(kept, rows, a=str(number)) for number in range(10)]
    kept.compact()
    assert history(rows, "a") == ["9", "8", "7", "6", "5", "4"]
    assert value(rows, "a", revisions[4]) == "4"


def test_a_deleted_key_leaves_nothing(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    for number in range(50):
        put(kept, rows, **{f"k{number}": "x" * 200})
        put(kept, rows, **{f"k{number}": None})
    last = put(kept, rows, a="1")
    kept.hands.now += 100
    kept.compact()
    with kept.server._engine.snapshot() as snapshot:
        revisions = [revision for revision, _ in snapshot.feed(0)]
    kept.die()
    assert contents(rows, last) == {"a": "1"}
    assert history(rows, "k7") == []
    # What made the keyspace, the last write, and the record of the pass.
    assert len(revisions) == 3


def test_an_event_that_goes_half_way_through_it_leaves_no_key_of_the_next_one_out(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(versions=2))
    put(kept, rows, a=None, b="1")
    put(kept, rows, c=None, b="2")
    put(kept, rows, b="3")
    kept.hands.now += 1000
    put(kept, rows, z="")
    kept.compact()  # of the first event the deletion is left
    assert (history(rows, "a"), history(rows, "b")) == ([None], ["3", "2"])
    kept.state().make_keyspace.start("rows", Retention(age=AGE)).result()
    kept.server._passes.compactor.work = 1  # a key a step
    kept.compact()
    assert history(rows, "c") == []
    assert contents(rows) == {"b": "3", "z": ""}


def test_a_pin_holds_a_moment_and_lets_it_go(kept: Kept) -> None:
    rows, other = (
        kept.keyspace_state("rows", Retention(age=AGE)),
        kept.keyspace_state("other", Retention(age=AGE)),
    )
    put(kept, rows, a="1", gone="1")
    put(kept, rows, gone=None, b="1")
    set_ = put(kept, rows, a="2")
    put(kept, rows, b="2", gone="again")
    put(kept, other, a="1")
    elsewhere = put(kept, other, a="2")
    pin = rows.pin.start("training set 7", set_, "what ppo-3 was trained on").result()
    assert (pin.revision, pin.keyspace, pin.why) == (set_, "rows", "what ppo-3 was trained on")
    assert rows.pin.start("training set 7").result() == pin
    with pytest.raises(PinExists) as exists:
        rows.pin.start("training set 7", elsewhere).result()
    assert exists.value.revision == set_
    then = contents(rows, set_)
    assert then == {"a": "2", "b": "1"}
    for _ in range(20):
        put(kept, rows, a="later", b=None)
        put(kept, other, a="later")
    kept.hands.now += 100
    kept.compact()
    kept.die()
    assert contents(rows, set_) == then
    assert list(contents(rows, set_)) == ["a", "b"]
    assert history(rows, "a") == ["later", "2"]
    with pytest.raises(Compacted):
        contents(rows, set_ - 1)
    with pytest.raises(Compacted):
        contents(rows, set_ + 1)
    with pytest.raises(Compacted):
        contents(other, elsewhere)
    # The moment is held a second time only because it is held already.
    assert rows.pin.start("the same", set_).result().revision == set_
    with pytest.raises(Compacted):
        rows.pin.start("too late", set_ + 1).result()
    rows.unpin.start("training set 7").result()
    kept.compact()
    assert contents(rows, set_) == then
    rows.unpin.start("the same").result()
    rows.unpin.start("the same").result()
    kept.compact()
    with pytest.raises(Compacted):
        contents(rows, set_)
    assert history(rows, "a") == ["later"]
    assert history(rows, "b") == []
    assert rows.pins.start().result() == []


def test_a_pin_of_the_unbadged_capability_holds_all_keyspaces(kept: Kept) -> None:
    one, two = (kept.keyspace_state(name, Retention(age=AGE)) for name in ("one", "two"))
    put(kept, one, a="0")
    put(kept, one, a="1")
    at = put(kept, two, a="1")
    kept.state().pin.start("incident 4").result()
    put(kept, one, a="2")
    put(kept, two, a="2")
    put(kept, two, b="1")
    kept.hands.now += 100
    kept.compact()
    assert contents(one, at) == contents(two, at) == {"a": "1"}
    assert [(pin.name, pin.keyspace) for pin in one.pins.start().result()] == [("incident 4", "store")]
    both = kept.state().range.start(layout.prefix(1), layout.prefix(3), as_of=at).result()
    assert [item.value for item in both.items] == [b"1", b"1"]
    with pytest.raises(Compacted):
        kept.state().range.start(layout.prefix(1), layout.prefix(3), as_of=at - 2).result()


def test_who_may_pin_and_what(kept: Kept) -> None:
    rows = kept.keyspace_state("rows")
    put(kept, rows, a="1")
    badge = 1
    with pytest.raises(NotAllowed):
        kept.state(badge, frozenset({"read", "write", "history"})).pin.start("x").result()
    for name in ("", "x" * 101, "a\nb"):
        with pytest.raises(BadRequest):
            rows.pin.start(name).result()
    with pytest.raises(Ahead):
        rows.pin.start("x", 10_000).result()
    for number in range(pins.LIMIT):
        rows.pin.start(f"pin {number}").result()
    with pytest.raises(QuotaExceeded):
        rows.pin.start("one more").result()
    told = rows.who.start(rows.head.start().result()).result()
    assert told is not None
    assert (told.keyspace, told.note, told.others) == ("rows", f"pin pin {pins.LIMIT - 1}", ("store",))


def test_an_open_transaction_reads_on(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    put(kept, rows, a="1", gone="1")
    transaction = rows.begin.start(3600.0).result()
    put(kept, rows, a="2", gone=None)
    put(kept, rows, a="3")
    put(kept, rows, b="1")
    kept.hands.now += 100
    kept.compact()
    item = rows.read.start(transaction, b"a").result()
    assert item is not None
    assert item.value == b"1"
    assert [each.key for each in rows.scan.start(transaction, b"").result().items] == [b"a", b"gone"]
    rows.abort.start(transaction).result()
    kept.compact()
    assert history(rows, "a") == ["3"]


def test_a_commit_id_is_remembered_as_long_as_is_said(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=0.0))
    put(kept, rows, id=b"id", a="1")
    kept.state().commit.start([Write(layout.prefix(1) + b"b", b"1")], id=b"the kernel's").result()
    for _ in range(3):
        put(kept, rows, a="2", b="2")
    put(kept, rows, c="1")
    kept.hands.now += REMEMBER - 5
    kept.compact()
    assert history(rows, "a") == ["2"]
    assert rows.commit.start([Write(b"a", b"1")], id=b"id").result().repeated
    kept.hands.now += 5
    kept.compact()
    assert not rows.commit.start([Write(b"a", b"1")], id=b"id").result().repeated
    kept.hands.now += 10**9
    put(kept, rows, b="3")
    kept.compact()
    again = kept.state().commit.start([Write(layout.prefix(1) + b"b", b"1")], id=b"the kernel's").result()
    assert again.repeated


def test_absence_is_expected_of_a_key_whose_deletion_is_forgotten(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    put(kept, rows, a="1")
    put(kept, rows, a=None)
    put(kept, rows, b="1")
    kept.hands.now += 100
    kept.compact()
    rows.commit.start([Write(b"a", b"2")], [Expect(b"a", 0)]).result()
    assert value(rows, "a") == "2"


def test_a_large_transaction_is_removed_in_small_steps(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    many = [f"k{number:05}" for number in range(5 * WORK)]
    # As large as a transaction may be.
    large = min(len(many), kept.server._engine.maximum_operations - CLAIM - 1)
    for value_ in ("1", "2"):
        for first in range(0, len(many), large):
            last = put(kept, rows, **dict.fromkeys(many[first : first + large], value_))
    put(kept, rows, z="1")
    kept.hands.now += 100
    kept.begin()
    steps, most, before = 0, 0, 0
    while kept.compacts:
        kept.step()
        steps += 1
        removed = rows.horizon.start().result().versions
        most, before = max(most, removed - before), removed
        assert contents(rows, last)["k00000"] == "2"
    assert before == len(many)
    assert most <= WORK
    assert steps >= 10


def test_a_step_asks_for_no_more_operations_than_a_batch_has() -> None:
    """One key with more versions that go at once than a batch has room for, each with its value and its event."""
    model = MemoryEngine(maximum_operations=10)
    kept = Kept(lambda: model)
    rows = kept.keyspace_state("rows")
    for number in range(20):
        put(kept, rows, a=f"{number}" * 200)
    put(kept, rows, a=None)
    last = put(kept, rows, b="1")
    kept.state().make_keyspace.start("rows", Retention(age=AGE)).result()
    kept.hands.now += 100
    put(kept, rows, c="1")
    kept.compact()
    assert history(rows, "a") == []
    assert rows.horizon.start().result().versions == 21
    assert contents(rows, last) == {"b": "1"}
    kept.die()
    assert contents(rows) == {"b": "1", "c": "1"}
    assert not check(kept.server._engine).breaches


def test_many_keyspaces_are_recorded_in_transactions_that_the_engine_takes() -> None:
    model = MemoryEngine(maximum_operations=10)
    kept = Kept(lambda: model)
    all_rows = [kept.keyspace_state(f"rows {number}", Retention(age=AGE)) for number in range(8)]
    for rows in all_rows:
        put(kept, rows, a="1")
        put(kept, rows, a="2")
    kept.hands.now += 100
    put(kept, all_rows[0], b="1")
    kept.compact()
    assert all(rows.horizon.start().result().compacted for rows in all_rows)


def test_a_pass_gives_back_what_a_killed_reader_held(tmp_path: Path) -> None:
    """Its slot, and with it the pages that were in use when it looked."""
    kept = Kept(lambda: LmdbEngine(tmp_path / "store", map_size=1 << 30, limit=512 << 20))
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    put(kept, rows, a="1")
    engine = kept.server._engine
    assert isinstance(engine, LmdbEngine)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "store")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with reader:
        assert reader.stdout is not None and reader.stdout.read(1)
        kept.begin()
        assert str(reader.pid) in engine._environment.readers()  # it lives
        reader.kill()
    put(kept, rows, a="2")
    assert str(reader.pid) in engine._environment.readers()
    kept.begin()
    assert str(reader.pid) not in engine._environment.readers()
    engine.close()


def test_each_pass_is_recorded(kept: Kept) -> None:
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    for number in range(10):
        put(kept, rows, id=b"%d" % number, a=str(number))
    kept.hands.now += 100
    kept.begin()
    while kept.step():
        pass
    kept.die()  # what was removed is recorded all the same
    kept.state().commit.start([Write(layout.prefix(1) + b"b", b"1")]).result()
    kept.compact()
    items = kept.state().history.start(_START + layout.prefix(1)).result()
    (record,) = [_decode(item.value or b"") for item in items]
    assert (record.keyspace, record.versions, record.ids) == ("rows", 9, 10)
    assert record.horizon == rows.horizon.start().result().revision
    assert rows.horizon.start().result().compacted // 1000 == int(kept.hands.now * 1e6)
    head = rows.head.start().result()
    kept.compact()
    kept.compact()
    assert rows.head.start().result() == head


def test_passes_of_one_hour_are_recorded_together(kept: Kept) -> None:
    """Records are kept for ever: with one a pass a busy store grew by them alone."""
    rows = kept.keyspace_state("rows", Retention(age=AGE))
    for number in range(20):
        put(kept, rows, a=str(number))
        kept.hands.now += 100
        kept.compact()
    history = kept.state().history.start
    (first,) = [_decode(item.value or b"") for item in history(_START + layout.prefix(1)).result()]
    kept.hands.now += 3600
    put(kept, rows, a="last")
    kept.hands.now += 100
    kept.compact()
    second, _ = [_decode(item.value or b"") for item in history(_START + layout.prefix(1)).result()]
    assert first.versions + second.versions == second.sums[0] == rows.horizon.start().result().versions > 15


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_a_full_store_is_compacted_and_takes_more(kind: str, tmp_path: Path) -> None:
    model = MemoryEngine(limit=24 << 20, reserve=6 << 20)
    made = Kept(
        lambda: (
            model
            if kind == "memory"
            else LmdbEngine(tmp_path / "store", map_size=1 << 30, limit=24 << 20, reserve=6 << 20)
        )
    )
    rows = made.keyspace_state("rows", Retention(age=AGE))
    full = False
    while not full:
        made.hands.now += 1
        try:
            rows.commit.start([Write(b"%d" % (made.hands.now % 3), bytes(100_000))]).result()
        except StoreFull:
            full = True
    made.hands.now += 100
    made.compact()
    for _ in range(20):
        made.hands.now += 1
        rows.commit.start([Write(b"a", bytes(100_000))]).result()
    report = check(made.server._engine)
    made.server._engine.close()
    assert not report.breaches


@pytest.mark.parametrize("kind", ["lmdb", "memory"])
def test_space_is_used_again(kind: str, tmp_path: Path) -> None:
    """Under steady churn the store stops growing, and what it takes is far less than what was written."""
    model = MemoryEngine()
    made = Kept(
        lambda: (
            model if kind == "memory" else LmdbEngine(tmp_path / "store", map_size=1 << 30, limit=512 << 20)
        )
    )
    rows = made.keyspace_state("rows", Retention(age=AGE))
    sizes = []
    for round_ in range(12):
        for number in range(40):
            made.hands.now += 0.25
            writes = [Write(b"%d" % ((number * 7 + at) % 400), bytes(1000 + at)) for at in range(25)]
            rows.commit.start(writes, id=b"%d %d" % (round_, number)).result()
        made.compact()
        statistics = made.server._engine.statistics()
        sizes.append(statistics.get("file", statistics["used"]))
    report = check(made.server._engine)
    made.server._engine.close()
    assert not report.breaches
    # What waits for a checkpoint is not used again yet, and when one ends the disk decides.
    assert max(sizes[8:]) <= max(sizes[4:8]) * 1.1, sizes


@pytest.mark.parametrize("then", [Retention(), Retention(versions=40)], ids=["for ever", "longer"])
def test_a_pass_removes_nothing_more_once_the_past_is_to_be_kept(kept: Kept, then: Retention) -> None:
    kept.server._passes.compactor.work = 8
    rows = kept.keyspace_state("rows", Retention(versions=1))
    for number in range(40):
        put(kept, rows, a=str(number))
    kept.hands.now += GRACE + 1
    assert kept.begin() and kept.step()
    left = history(rows, "a")
    assert 1 < len(left) < 40
    kept.state().make_keyspace.start("rows", then).result()
    while kept.step():
        pass
    kept.compact()
    assert history(rows, "a") == left
    kept.state().make_keyspace.start("rows", Retention(versions=1)).result()
    kept.compact()
    assert len(history(rows, "a")) < len(left)


def test_a_pass_begins_with_each_keyspace_from_its_beginning(kept: Kept) -> None:
    """Also where it has just given up another one in the midst of a transaction that wrote both."""
    kept.server._passes.compactor.work = 1  # a key a step
    one, two, other = (kept.keyspace_state(name, Retention(age=AGE)) for name in ("one", "two", "other"))
    numbers = kept.state().keyspaces.start().result()
    keys = [absolute(numbers["two"], b"k"), *(absolute(numbers["one"], name) for name in (b"a", b"b", b"c"))]
    for text in (b"old", b"new"):
        kept.hands.now += 1
        kept.state().commit.start([Write(key, text) for key in keys]).result()
        if text == b"old":
            put(kept, other, k="")
            kept.hands.now += AGE + 1
    kept.compact()  # as far as before the transaction that comes next
    kept.hands.now += AGE + 1
    put(kept, other, k="")
    assert kept.begin() and kept.step() and kept.step()
    kept.state().make_keyspace.start("one", Retention()).result()
    while kept.step():
        pass
    assert history(one, "c") == ["new", "old"]
    assert history(two, "k") == ["new"]
