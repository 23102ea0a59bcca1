"""Revisions, versions and preconditions, below the server."""

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from atoll.ipc.errors import Conflict, TooLarge
from atoll.ipc.local_view import LocalView, decode_key
from atoll.ipc.system.state import Ahead, Committed, Compacted, Expect, Range, StoreFull
from atoll.servers.state import horizons, layout
from atoll.servers.state.engine import Batch
from atoll.servers.state.history import History
from atoll.servers.state.memory_engine import MemoryEngine
from atoll.servers.state.ownership import Disowned

from .history_kit import BOOT, Kit, key


def test_every_revision_can_be_read_again(kit: Kit) -> None:
    assert kit.commit({"a": "1", "b": "1"}) == 1
    assert kit.commit({"a": "2"}) == 2
    assert kit.commit({"b": None, "c": "x" * 500}) == 3
    kit.reopen()
    assert kit.state(0) == {}
    assert kit.state(1) == {"a": "1", "b": "1"}
    assert kit.state(2) == {"a": "2", "b": "1"}
    assert kit.state(3) == kit.state() == {"a": "2", "c": "x" * 500}
    assert list(kit.state(2, reverse=True)) == ["b", "a"]
    versions = kit.history.history(key("b"), 10)
    assert [(item.value, item.revision - kit.base) for item in versions] == [(None, 3), (b"1", 1)]


def test_a_moment_is_the_revision_in_force_then(kit: Kit) -> None:
    kit.commit({"a": "1"})
    first = kit.history.get(key("a"))
    assert first is not None
    kit.clock += 10_000_000_000
    kit.commit({"a": "2"})
    then = kit.history.get(key("a"), first.time / 1e9 + 5)
    assert then == first
    assert kit.history.get(key("a"), 1.0) is None
    assert kit.history.revision_at(4e9) == kit.history.head()


def test_times_rise_even_when_the_clock_steps_back(kit: Kit) -> None:
    kit.commit({"a": "1"})
    kit.clock -= 10**15
    kit.commit({"a": "2"})
    newer, older = kit.history.history(key("a"), 2)
    assert newer.time > older.time


def test_the_future_and_the_compacted_past_are_refused(kit: Kit) -> None:
    with pytest.raises(Ahead) as ahead:
        kit.history.get(key("a"), kit.base + 1)
    assert ahead.value.head == kit.base
    with pytest.raises(Ahead):
        kit.history.get(key("a"), None, least=kit.base + 1)


def test_a_store_that_begins_later_says_where() -> None:
    engine = MemoryEngine()
    batch = Batch()
    batch.append(10, layout.event(5, layout.Entry(1, "", 0, "", b"", b"", [])))
    horizons.put(batch, 1, horizons.Progress(horizon=9))
    engine.commit(batch)
    history = History(engine, str)
    with pytest.raises(Compacted) as compacted:
        history.changes(3, b"", 10)
    assert compacted.value.horizon == 9
    assert history.changes(9, b"", 10)[1] == 10


def test_members_of_a_group_see_each_other(kit: Kit) -> None:
    first = kit.admit([(key("a"), b"1")], [Expect(key("a"), 0)])
    second = kit.admit([(key("a"), b"2")], [Expect(key("a"), 0)])
    third = kit.admit([(key("a"), b"3")], [Expect(key("a"), kit.base + 1)])
    assert not first
    assert not second
    assert not third
    assert kit.state() == {}
    kit.group.flush()
    assert second == [Conflict(b"a", 0, kit.base + 1, "first")]
    assert [first[0], third[0]] == [
        Committed(kit.base + 1, kit.clock - 2000),
        Committed(kit.base + 2, kit.clock),
    ]
    assert kit.state() == {"a": "3"}
    assert kit.announced[-2:] == [kit.base + 1, kit.base + 2]


def test_an_expectation_of_absence_holds_after_a_deletion(kit: Kit) -> None:
    kit.commit({"a": "1"})
    kit.commit({"a": None})
    assert kit.commit({"a": "2"}, [Expect(key("a"), 0)]) == 3


def test_a_range_that_was_read_must_not_have_gained_or_lost_a_key(kit: Kit) -> None:
    kit.commit({"b": "1", "z": "1"})
    read = Range(key("a"), key("c"), kit.base + 1)
    assert kit.commit({"out": "x"}, [read]) == 2
    kit.commit({"bb": "phantom"})
    with pytest.raises(Conflict) as conflict:
        kit.commit({"out": "y"}, [read])
    assert conflict.value == Conflict(b"bb", kit.base + 1, kit.base + 3, "first")
    kit.commit({"b": None})
    with pytest.raises(Conflict):
        kit.commit({"out": "y"}, [Range(key("b"), key("b\0"), kit.base + 3)])


def test_write_skew_is_refused(kit: Kit) -> None:
    """Both doctors look whether another is on call, and both go off: under snapshot isolation both commits
    would pass."""
    kit.commit({"on/1": "yes", "on/2": "yes"})
    read = Range(key("on/"), key("on0"), kit.base + 1)
    assert kit.commit({"on/1": None}, [read]) == 2
    with pytest.raises(Conflict):
        kit.commit({"on/2": None}, [read])


def test_a_repeated_id_gives_the_first_outcome_and_writes_nothing(kit: Kit) -> None:
    id = layout.prefix(1) + b"id"
    first = kit.admit([(key("a"), b"1")], id=id, reply=b"stored")
    twin = kit.admit([(key("a"), b"2")], id=id, reply=b"other")
    kit.group.flush()
    kit.reopen()
    later = kit.admit([(key("a"), b"3")], [Expect(key("a"), 77)], id=id)
    assert isinstance(first[0], Committed)
    assert not first[0].repeated
    assert twin == later == [Committed(first[0].revision, first[0].time, b"stored", True)]
    assert kit.state() == {"a": "1"}


def test_changes_are_told_by_prefix_in_order(kit: Kit) -> None:
    kit.commit({"a/1": "x"})
    kit.admit([(key("a/1", 2), b"elsewhere")], badge=2)
    kit.group.flush()
    kit.commit({"b": "y", "a/2": None})
    changes, seen, more = kit.history.changes(kit.base, key("a/"), 10)
    assert not more
    assert seen == kit.base + 3
    told = [
        (change.revision - kit.base, [(item.key[4:], item.value) for item in change.items])
        for change in changes
    ]
    assert told == [(1, [(b"a/1", b"x")]), (3, [(b"a/2", None)])]
    assert changes[0].provenance.keyspace == "first"
    assert kit.history.who(kit.base + 2, 1) is None
    assert kit.history.who(kit.base + 2, 2) == kit.history.who(kit.base + 2, None)


def test_a_feed_without_the_past_keeps_a_view_complete(kit: Kit) -> None:
    for number in range(6):
        kit.commit({"often": str(number), f"once {number}": "x", f"once {number - 2}": None})
    now = {decode_key(item.key): item.value for item in kit.history.range(key(""), key("", 2), 100).items}
    for after in range(kit.base, kit.history.head() + 1):
        view: LocalView[bytes] = LocalView()
        for item in kit.history.range(key(""), key("", 2), 100, after).items:
            view.put(decode_key(item.key), item.value or b"", item.revision)
        view.pass_to(after)
        for change in kit.history.changes(after, key(""), 100, past=False)[0]:
            for item in change.items:
                assert item == kit.history.history(item.key, 1)[0]
                if item.value is None:
                    view.delete(decode_key(item.key), item.revision)
                else:
                    view.put(decode_key(item.key), item.value, item.revision)
            view.pass_to(change.revision)
            for item in kit.history.range(key(""), key("", 2), 100, change.revision).items:
                gone = decode_key(item.key) not in now
                assert gone or view.revision_of(item.key) >= item.revision
        assert dict(view.items()) == now


def test_a_feed_without_the_past_holds_a_value_once(kit: Kit) -> None:
    for value in ("small", "small", "x" * 5000):
        kit.commit({"a": value})
    changes, _, _ = kit.history.changes(kit.base, key(""), 10, past=False)
    assert len(changes) == 3
    assert len({id(change.items[0].value) for change in changes}) == 1


def test_too_long_a_key_is_refused_before_it_joins_a_group(kit: Kit) -> None:
    fine = kit.admit([(key("a"), b"1")])
    with pytest.raises(TooLarge):
        kit.commit({"k" * kit.engine.maximum_key: "x"})
    kit.group.flush()
    assert isinstance(fine[0], Committed)


def few(operations: int) -> Kit:
    model = MemoryEngine(maximum_operations=operations)
    return Kit(lambda: model)


def test_a_transaction_of_too_many_operations_is_refused_before_it_joins_a_group() -> None:
    kit = few(12)
    fine = kit.admit([(key("a"), b"1")])
    rows: list[tuple[bytes, bytes | None]] = [(key(str(number)), b"x" * 200) for number in range(4)]
    assert kit.admit(rows, id=b"i") == [
        TooLarge(
            "a transaction of 4 writes",
            10,
            9,
            "operations",
            "commit it in parts, each of which leaves the state whole",
        )
    ]
    whole = kit.admit(rows)  # without an id it is one less, and all that a batch has room for
    kit.group.flush()
    assert isinstance(fine[0], Committed) and not whole
    kit.group.flush()
    assert isinstance(whole[0], Committed)
    assert kit.state() == {"a": "1"} | {str(number): "x" * 200 for number in range(4)}


def test_a_group_asks_for_no_more_operations_than_a_batch_has() -> None:
    """Nobody is refused for the company that he is in, and each one's expectation holds when it is his turn."""
    kit = few(16)
    outcomes = [kit.admit([(key(str(number)), b"x" * 200)], id=b"%d" % number) for number in range(10)]
    assert kit.group.full
    late = kit.admit([(key("9"), b"late")], [Expect(key("9"), 0)])
    twin = kit.admit([(key("9"), b"again")], id=b"9")
    groups = kit.group.groups
    while len(kit.group):
        kit.group.flush()
    assert kit.group.groups - groups > 2
    revisions = [each[0].revision for each in outcomes if isinstance(each[0], Committed)]
    assert len(set(revisions)) == 10
    (first,), (second,) = outcomes[9], twin
    assert isinstance(first, Committed) and isinstance(second, Committed)
    assert first.revision == second.revision and first.repeated != second.repeated
    assert isinstance(late[0], Committed | Conflict)


def test_a_full_store_takes_what_fits_and_what_is_the_kernels() -> None:
    model = MemoryEngine(limit=200_000, reserve=20_000)
    kit = Kit(lambda: model)
    large = kit.admit([(key("large"), bytes(190_000))])
    small = kit.admit([(key("small"), b"1")])
    kernel = kit.admit([(key("kernel"), bytes(100))], reserved=True)
    kit.group.flush()
    assert isinstance(large[0], StoreFull)
    assert isinstance(small[0], Committed)
    assert isinstance(kernel[0], Committed)
    assert kernel[0].revision == small[0].revision + 1
    assert kit.state().keys() == {"small", "kernel"}


def test_what_the_engine_refused_stands_in_nobodys_way() -> None:
    """Before, the second was told of a conflict with a revision that there never was."""
    model = MemoryEngine(limit=200_000, reserve=20_000)
    kit = Kit(lambda: model)
    large = kit.admit([(key("a"), bytes(190_000))])
    second = kit.admit([(key("a"), b"1")], [Expect(key("a"), 0)])
    third = kit.admit([(key("a"), b"2")], [Expect(key("a"), 0)])
    kit.group.flush()
    assert isinstance(large[0], StoreFull)
    assert second == [Committed(kit.base + 1, kit.clock - 1000)]
    assert third == [Conflict(b"a", 0, kit.base + 1, "first")]
    assert kit.state() == {"a": "1"}


def test_an_earlier_boot_cannot_commit(kit: Kit) -> None:
    kit.commit({"a": "1"})
    survivor, newer = kit.group, kit.another_group(boot=6)
    kit.group = newer
    kit.commit({"a": "2"})
    kit.group = survivor
    outcome = kit.admit([(key("a"), b"3")])
    with pytest.raises(Disowned, match="boot 6"):
        kit.group.flush()
    assert outcome == []
    kit.group = kit.another_group(boot=4)
    with pytest.raises(Disowned):
        kit.commit({"a": "4"})
    assert kit.state() == {"a": "2"}


def test_a_new_version_that_never_wrote_leaves_the_old_one_its_rights(kit: Kit) -> None:
    kit.commit({"a": "1"})
    kit.another_group(boot=BOOT)
    assert kit.commit({"a": "2"}) == 2


names = strategies.sampled_from(["", "a", "a\0", "a\0b", "aa", "b", "\0", "\0\0", "\x01", "ÿ"])
operations = strategies.lists(
    strategies.lists(
        strategies.dictionaries(
            names, strategies.one_of(strategies.none(), strategies.text(max_size=3)), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=4,
    ),
    max_size=12,
)


@given(groups=operations)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_state_of_a_random_history_reads_as_it_was(groups: list[list[dict[str, str | None]]]) -> None:
    model = MemoryEngine()
    kit = Kit(lambda: model)
    states: list[dict[str, str]] = [{}]
    for group in groups:
        for writes in group:
            kit.admit(
                [(key(name), None if value is None else value.encode()) for name, value in writes.items()]
            )
            state = states[-1] | {name: value for name, value in writes.items() if value is not None}
            states.append({name: value for name, value in state.items() if writes.get(name, "") is not None})
        kit.group.flush()
    for revision, state in enumerate(states):
        expected = dict(sorted(state.items(), key=lambda item: item[0].encode()))
        found = kit.state(revision)
        assert found == expected
        assert list(found) == list(expected)
        assert list(kit.state(revision, reverse=True)) == list(reversed(expected))
        for name in state:
            item = kit.history.get(key(name), revision + kit.base)
            assert item is not None
            assert item.value == state[name].encode()
