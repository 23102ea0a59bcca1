"""Bulk waits for its next turn where a group has had enough of it, in its order; nobody else waits behind it, nor is
anybody forgotten."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.ipc.deferred import Deferred
from atoll.ipc.future import Future
from atoll.ipc.system.state import Committed, Expect, State, StoreFull, Write
from atoll.servers.state import group
from atoll.servers.state.group import BULK_MOST, Transaction
from atoll.servers.state.memory_engine import MemoryEngine

from .history_kit import Kit, key
from .kept import Kept

LARGE = bytes(BULK_MOST // 3)


def test_who_does_not_import_is_not_behind_an_import(kit: Kit) -> None:
    imports = [kit.admit([(key(f"bulk {number}"), LARGE)], bulk=True) for number in range(7)]
    rating = kit.admit([(key("rating"), b"5")])
    kit.group.flush()
    assert isinstance(rating[0], Committed)
    assert [bool(each) for each in imports] == [True] * 3 + [False] * 4
    second = kit.admit([(key("rating"), b"4")])
    kit.group.flush()
    assert second and [bool(each) for each in imports] == [True] * 6 + [False]
    kit.group.flush()
    revisions = [each[0].revision for each in imports if isinstance(each[0], Committed)]
    assert revisions == sorted(revisions) and len(revisions) == 7


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([1, BULK_MOST // 2, BULK_MOST]), st.booleans()),
        max_size=12,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_nobody_is_forgotten(asked: list[tuple[bool, int, bool]]) -> None:
    """Some are refused: what they expect is not so, or the store is full."""
    model = MemoryEngine(limit=12 << 20)
    kit = Kit(lambda: model)
    outcomes = []
    for number, (bulk, size, wrong) in enumerate(asked):
        expects = [Expect(key("nowhere"), 99)] if wrong else []
        outcomes.append(kit.admit([(key(str(number)), bytes(size))], expects, bulk=bulk))
        if number % 5 == 4:
            kit.group.flush()
    while len(kit.group):
        kit.group.flush()
    assert all(len(each) == 1 for each in outcomes)
    imported = [
        outcome.revision
        for (bulk, _, _), (outcome,) in zip(asked, outcomes, strict=True)
        if bulk and isinstance(outcome, Committed)
    ]
    assert imported == sorted(imported)


def test_those_who_wait_are_served_when_a_group_did_not_fit() -> None:
    model = MemoryEngine(limit=3 << 20)
    kit = Kit(lambda: model)
    half = bytes(BULK_MOST // 2)
    imports = [
        kit.admit([(key(f"bulk {number} {each}"), half) for each in range(2)], bulk=True)
        for number in range(6)
    ]
    while len(kit.group):
        kit.group.flush()
    kinds = [type(each[0]) for each in imports]
    assert kinds[0] is Committed and kinds[-1] is StoreFull


def test_a_pin_is_durable_behind_bulk_of_which_each_fills_a_group() -> None:
    engine = MemoryEngine(maximum_operations=20)
    kept = Kept(lambda: engine)
    state, group = kept.keyspace_state("one"), kept.server._group
    kept.server._looped = True  # groups are committed when its loop has nothing else to do
    for number in range(4):
        rows: list[tuple[bytes, bytes | None]] = [(key(f"{number} {each}"), b"") for each in range(16)]
        group.admit(Transaction(1, rows, [], bulk=True), Deferred())
    state.pin.start("here").result()
    assert [pin.name for pin in state.pins.start().result()] == ["here"]
    assert not len(group)


@pytest.mark.parametrize("at_once", [True, False], ids=["commit", "finish"])
def test_the_class_of_the_call_says_what_is_bulk(*, at_once: bool) -> None:
    """Nothing else of a call does: a group takes its megabyte of what was asked for in class `bulk`, and all the others."""
    kept = Kept(MemoryEngine)
    kept.server._looped = True
    state = kept.keyspace_state("one")
    classes = {"bulk": state.with_(service="bulk"), "none": state, "control": state.with_(service="control")}

    def ask(of: State, name: str) -> Future[Committed]:
        writes = [Write(name.encode(), LARGE)]
        if at_once:
            return of.commit.start(writes)
        transaction = state.begin.start(10.0).result()
        state.commit.start(writes, transaction=transaction).result()
        return of.finish.start(transaction)

    asked = {name: [ask(of, f"{name} {each}") for each in range(4)] for name, of in classes.items()}
    kept.server._flush()
    taken = {name: sum(each.done() for each in those) for name, those in asked.items()}
    assert taken == {"bulk": 3, "none": 4, "control": 4}
    kept.server._flush_all()
    assert all(each.done() for those in asked.values() for each in those)


def test_nobody_overtakes_who_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not wait for its first write of a row writes it again: what it wrote last stands."""
    monkeypatch.setattr(group, "BULK_MOST", 1)
    engine = MemoryEngine(maximum_operations=20)
    kept = Kept(lambda: engine)
    state = kept.keyspace_state("one")
    kept.server._looped = True

    def ask(name: str, count: int, *writes: tuple[bytes, bytes], bulk: bool = False) -> Deferred[Committed]:
        rows: list[tuple[bytes, bytes | None]] = [(key(f"{name} {each}"), b"") for each in range(count)]
        return kept.server._admit(Transaction(1, [*rows, *writes], [], bulk=bulk))

    asked = [ask("first", 8, bulk=True), ask("second", 8, bulk=True)]
    asked.append(ask("large", 11, (key("k"), b"before")))
    asked.append(ask("small", 0, (key("k"), b"after")))
    while len(kept.server._group):
        kept.server._flush()
    revisions = [each.result().revision for each in asked]
    assert revisions == sorted(revisions)
    found = state.get.start(b"k").result()
    assert found is not None and found.value == b"after"
