"""Changes that wait in the journal for the store: where the journal's disk has no room to note that they are rows, and
where the store dies while it is asked to make rows of them."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc.errors import AtollError, Overloaded, PeerDied
from atoll.ipc.system.records import EventRow
from atoll.ipc.system.state import StoreFull, Write
from atoll.microkernel.changes import Batch, Changes
from atoll.microkernel.journal import create, open_
from atoll.microkernel.store import JOURNAL_RECORDS_MOST, ROOM_AGAIN, Store


class Taking:
    """A store that takes all that it is given."""

    revision = 1

    def __init__(self) -> None:
        self.ids: list[bytes] = []

    async def commit(self, writes: Sequence[Write], *, id: bytes, note: str) -> "Taking":
        self.ids.append(id)
        return self


async def test_what_became_rows_and_could_not_be_noted_is_committed_again_under_its_id(
    tmp_path: Path,
) -> None:
    journal = create(tmp_path / "journal", "node", 7)
    journal.boot(10)
    row = EventRow(boot=1, sequence=1, time=1, kind="test", who="me", sentence="it was")
    changes = Batch(b"1", note="test").put(row).changes()
    journal.wait(changes)
    state: Any = Taking()
    store = Store(journal, 1)

    room, full = os.dup(journal._descriptor), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._descriptor, inheritable=False)
    await store.opened(state, 0)
    assert list(journal.waiting) == [changes.id]
    assert store.serves

    os.dup2(room, journal._descriptor, inheritable=False)
    await store.settle()
    assert not journal.waiting
    assert state.ids == [changes.id] * 2
    for descriptor in (room, full):
        os.close(descriptor)
    journal.close()


class Halted:
    """A store that takes what it is given and never answers, as one does that is frozen."""

    def __init__(self) -> None:
        self.asked = trio.Event()

    async def commit(self, writes: Sequence[Write], *, id: bytes, note: str) -> None:
        self.asked.set()
        await trio.sleep_forever()


async def test_what_may_wait_in_the_journal_does_so_when_the_store_dies_over_it(tmp_path: Path) -> None:
    """Its restart may wait for whoever wants this to be kept."""
    journal = create(tmp_path / "journal", "node", 7)
    journal.boot(10)
    row = EventRow(boot=1, sequence=1, time=1, kind="test", who="me", sentence="it was")
    changes = Batch(b"1", note="test").put(row).changes()
    state: Any = Halted()
    store = Store(journal, 1)
    await store.opened(state, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit_or_keep, changes)
        await state.asked.wait()
        assert not journal.waiting
        store.lost()
    assert list(journal.waiting) == [changes.id]
    journal.close()


class Table:
    """A store that answers when it is let, and refuses where it is told to."""

    revision = 1

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.sent: list[bytes | None] = []
        self.asked, self.answer = trio.Event(), trio.Event()
        self.fault: AtollError | None = None
        self.only = b""
        """Of which value alone it is the fault; empty: of any."""

    async def commit(self, writes: Sequence[Write], *, id: bytes, note: str) -> "Table":
        self.asked.set()
        await self.answer.wait()
        if self.fault is not None and (not self.only or self.only in [write.value for write in writes]):
            raise self.fault
        self.sent += [write.value for write in writes]
        self.rows |= {write.key: write.value for write in writes}
        return self


def event(sentence: str) -> EventRow:
    return EventRow(boot=1, sequence=1, time=1, kind="test", who="me", sentence=sentence)


@pytest.fixture
async def table(tmp_path: Path) -> AsyncIterator[tuple[Table, Store]]:
    journal = create(tmp_path / "journal", "node", 7)
    journal.boot(10)
    state: Any = Table()
    store = Store(journal, 1)
    await store.opened(state, 0)
    yield state, store
    journal.close()


async def test_a_row_that_nobody_waits_for_does_not_overwrite_a_newer_one(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    store.later(Batch(b"1", note="test").put(event("old")))
    await store.commit(Batch(b"2", note="test").put(event("new")).changes())
    await store.flush()
    assert list(state.rows.values()) == [event("new").value()]


async def test_a_row_that_was_on_its_way_when_the_store_died_does_not_come_back_over_a_newer_one(
    table: tuple[Table, Store],
) -> None:
    state, store = table
    store.later(Batch(b"1", note="test").put(event("old")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.flush)
        await state.asked.wait()
        nursery.start_soon(store.commit_or_keep, Batch(b"2", note="test").put(event("new")).changes())
        await trio.testing.wait_all_tasks_blocked()
        store.lost()
        state.fault = PeerDied("State.commit")
        state.answer.set()
    state.fault = None
    await store.settle()
    await store.flush()
    assert list(state.rows.values()) == [event("new").value()]


class Dying:
    """A store that makes durable what it is given, and dies before it answers. Its channel sends it again in that order, and
    the next process knows by its id what was committed."""

    revision = 1

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self._sent: list[tuple[Sequence[Write], bytes]] = []
        self._ids: set[bytes] = set()
        self._answers = trio.Event()

    async def commit(self, writes: Sequence[Write], *, id: bytes, note: str) -> "Dying":
        self._sent.append((writes, id))
        self._take(writes, id)
        await self._answers.wait()
        return self

    def _take(self, writes: Sequence[Write], id: bytes) -> None:
        if not id or id not in self._ids:
            self._ids.add(id)
            self.rows |= {write.key: write.value for write in writes}

    def die(self) -> None:
        for sent in self._sent:
            self._take(*sent)
        self._answers.set()


async def test_a_row_that_is_sent_again_does_not_come_back_over_a_newer_one(tmp_path: Path) -> None:
    """It has no id, and what was decided since has: of that the store knows that it was there."""
    journal = create(tmp_path / "journal", "node", 7)
    journal.boot(10)
    state: Any = Dying()
    store = Store(journal, 1)
    await store.opened(state, 0)
    store.later(Batch(b"1", note="test").put(event("old")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(store.commit, Batch(b"2", note="test").put(event("new")).changes())
        await trio.testing.wait_all_tasks_blocked()
        state.die()
    assert list(state.rows.values()) == [event("new").value()]
    journal.close()


async def test_what_waits_for_the_store_is_committed_in_the_order_in_which_it_was_decided(
    table: tuple[Table, Store],
) -> None:
    """A capability that was made and revoked meanwhile is not to come back, nor is a load to be undone that came after the
    one that failed. The event loop wakes whoever waits in any order, and after whoever comes right then."""
    state, store = table
    state.answer.set()
    store.lost()
    async with trio.open_nursery() as nursery:
        for number in range(3):
            made = Batch(b"%d" % number, note="test").put(event(f"{number}"))
            nursery.start_soon(store.commit, made.changes())
            await trio.testing.wait_all_tasks_blocked()
        given_up = trio.CancelScope()
        nursery.start_soon(
            _within, given_up, store.commit, Batch(b"3", note="test").put(event("3")).changes()
        )
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(store.commit, Batch(b"4", note="test").put(event("4")).changes())
        await trio.testing.wait_all_tasks_blocked()
        given_up.cancel()
        await store.settle()
        await store.commit(Batch(b"5", note="test").put(event("5")).changes())
    assert state.sent == [event(each).value() for each in "01245"]


async def _within(
    scope: trio.CancelScope, commit: Callable[[Changes], Awaitable[int]], changes: Changes
) -> None:
    with scope:
        await commit(changes)


async def test_a_commit_that_fails_leaves_what_waited(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    store.later(Batch(b"1", note="test").put(event("old")))
    state.fault = StoreFull("the store", 2, 1)
    with pytest.raises(StoreFull):
        await store.commit(Batch(b"2", note="test").put(event("new")).changes())
    state.fault = None
    await store.flush()
    assert list(state.rows.values()) == [event("old").value()]


async def test_a_commit_that_fails_leaves_the_latest_of_what_waited(table: tuple[Table, Store]) -> None:
    """Of one row, what the store refused is older than what was told since."""
    state, store = table
    state.answer.set()
    state.fault = StoreFull("the store", 2, 1)
    store.later(Batch(b"1", note="test").put(event("started")), keep=True)
    await store.flush()
    store.later(Batch(b"2", note="test").put(event("ended")))
    with pytest.raises(StoreFull):
        await store.commit(Batch(b"3", note="test").put(event("refused")).changes())
    state.fault = None
    await store.flush()
    assert list(state.rows.values()) == [event("ended").value()]


async def test_rows_that_the_store_refuses_are_counted(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    told: list[int] = []
    store.gave_up = told.append
    state.fault = StoreFull("the store", 2, 1)
    store.later(Batch(b"1", note="test").put(event("lost")))
    await store.flush()
    assert told == []
    state.fault = None
    store.later(Batch(b"2", note="test").put(event("kept")))
    await store.flush()
    assert told == [1]


async def test_a_store_that_has_no_room_for_what_waits_ends_nobody(table: tuple[Table, Store]) -> None:
    """It settles in a task of the kernel's own: what is raised there ends the node."""
    state, store = table
    state.answer.set()
    store.journal.wait(Batch(b"1", note="test").put(event("it was")).changes())
    state.fault = StoreFull("the store", 2, 1)
    await store.settle()
    assert len(store.journal.waiting) == 1
    state.fault = None
    await store.settle()
    assert not store.journal.waiting
    assert list(state.rows.values()) == [event("it was").value()]


async def test_what_the_store_has_no_room_for_keeps_nothing_else_in_the_journal(
    table: tuple[Table, Store],
) -> None:
    """A decision that was owed lies before what became of the store itself. What is newer of its rows waits with it."""
    state, store = table
    state.answer.set()
    state.fault, state.only = StoreFull("the store", 2, 1), event("owed").value()
    for number, rows in enumerate(
        (
            [event("owed")],
            [event("since"), numbered(2, "since")],
            [numbered(2, "last")],
            [numbered(3, "other")],
        )
    ):
        store.journal.wait(Batch(b"%d" % number, note="test").put(*rows).changes())
    await store.settle()
    assert store.serves
    assert state.sent == [numbered(3, "other").value()]
    state.fault = None
    await store.settle()
    assert not store.journal.waiting
    assert set(state.rows.values()) == {
        event("since").value(),
        numbered(2, "last").value(),
        numbered(3, "other").value(),
    }


async def test_rows_of_two_who_hand_them_over_at_once_are_all_kept(table: tuple[Table, Store]) -> None:
    """A shutdown does so while it is done in the background."""
    state, store = table
    others = EventRow(boot=1, sequence=2, time=1, kind="test", who="me", sentence="second")
    store.later(Batch(b"1", note="test").put(event("first")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.flush)
        await state.asked.wait()
        store.later(Batch(b"2", note="test").put(others))
        nursery.start_soon(store.flush)
        await trio.testing.wait_all_tasks_blocked()
        state.fault = PeerDied("State.commit")
        state.answer.set()
    state.fault = None
    await store.flush()
    assert sorted(state.rows.values()) == sorted([event("first").value(), others.value()])  # type: ignore[type-var]


async def test_what_is_owed_is_kept_until_the_store_takes_it(table: tuple[Table, Store]) -> None:
    """Beside a row of the record that is given up, and until then in nobody's way."""
    state, store = table
    state.answer.set()
    others = EventRow(boot=1, sequence=2, time=1, kind="test", who="me", sentence="lost")
    state.fault = StoreFull("the store", 2, 1)
    store.owe(Batch(b"1", note="test").put(event("decided")))
    store.later(Batch(b"2", note="test").put(others))
    await store.flush()
    await store.flush()
    assert not state.rows
    state.fault = None
    await store.flush()
    assert list(state.rows.values()) == [event("decided").value()]
    state.rows.clear()
    await store.flush()
    assert not state.rows


async def test_what_is_owed_is_tried_until_a_busy_store_takes_it(
    table: tuple[Table, Store], autojump_clock: trio.testing.MockClock
) -> None:
    """Also where nothing else is told that would have it tried."""
    state, store = table
    state.answer.set()
    state.fault = StoreFull("the store", 2, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write_later)
        store.owe(Batch(b"1", note="test").put(event("decided")))
        await trio.sleep(ROOM_AGAIN / 2)
        state.fault = Overloaded("state")
        await trio.sleep(2 * ROOM_AGAIN)
        state.fault = None
        await trio.sleep(2 * ROOM_AGAIN)
        nursery.cancel_scope.cancel()
    assert list(state.rows.values()) == [event("decided").value()]


async def test_what_is_owed_is_known_to_the_next_boot(tmp_path: Path) -> None:
    """Also where the node ends before the store has room for it."""
    for boot in (1, 2):
        journal = create(tmp_path / "journal", "node", 7) if boot == 1 else open_(tmp_path / "journal")
        journal.boot(10 * boot)
        state: Any = Table()
        state.answer.set()
        store = Store(journal, boot)
        await store.opened(state, 0)
        if boot == 1:
            state.fault = StoreFull("the store", 2, 1)
            store.owe(Batch(b"1", note="test").put(event("decided")))
            await store.flush()
            assert not state.rows
        journal.close()
    assert list(state.rows.values()) == [event("decided").value()]


async def test_a_journal_grows_no_further_for_what_was_owed(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    for number in range(10 * JOURNAL_RECORDS_MOST):
        store.owe(Batch(b"%d" % number, note="test").put(event(f"{number}")))
        await store.flush()
    assert store.journal.records <= JOURNAL_RECORDS_MOST
    assert list(state.rows.values()) == [event(f"{10 * JOURNAL_RECORDS_MOST - 1}").value()]


async def test_what_is_owed_does_not_overwrite_what_was_decided_since(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    state.fault = StoreFull("the store", 2, 1)
    store.owe(Batch(b"1", note="test").put(event("old")))
    await store.flush()
    with pytest.raises(StoreFull):
        await store.commit(Batch(b"2", note="test").put(event("refused")).changes())
    state.fault = None
    await store.commit(Batch(b"3", note="test").put(event("new")).changes())
    await store.flush()
    assert list(state.rows.values()) == [event("new").value()]


async def test_a_row_that_the_store_refuses_takes_no_other_along(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    told: list[int] = []
    store.gave_up = told.append
    rows = [EventRow(boot=1, sequence=n, time=1, kind="test", who="me", sentence=f"{n}") for n in range(20)]
    state.fault, state.only = StoreFull("the store", 2, 1), rows[7].value()
    store.later(Batch(b"1", note="test").put(*rows))
    await store.flush()
    assert set(state.rows.values()) == {row.value() for row in rows if row is not rows[7]}
    assert told == [1]


async def test_what_waited_in_the_journal_does_not_overwrite_what_was_decided_since(
    table: tuple[Table, Store],
) -> None:
    """An intent waits there, and what came of it is told later; both go to a store that serves again."""
    state, store = table
    store.lost()
    before = EventRow(boot=1, sequence=2, time=1, kind="test", who="me", sentence="before")
    await store.commit_or_keep(Batch(b"1", note="test").put(before).changes())
    await store.commit_or_keep(Batch(b"2", note="test").put(event("old")).changes())
    store.later(Batch(b"3", note="test").put(event("new")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.settle)
        await state.asked.wait()
        nursery.start_soon(store.flush)
        await trio.testing.wait_all_tasks_blocked()
        state.answer.set()
    await store.flush()
    assert sorted(filter(None, state.rows.values())) == sorted([before.value(), event("new").value()])


@pytest.mark.parametrize("fault", [StoreFull("the store", 2, 1), Overloaded("state")], ids=["full", "busy"])
async def test_what_was_refused_and_waits_on_goes_before_what_is_decided_on_the_same_row(
    table: tuple[Table, Store], fault: AtollError
) -> None:
    """The store serves although it had no room for it. While it still has none, nothing newer takes its place either."""
    state, store = table
    store.lost()
    await store.commit_or_keep(Batch(b"1", note="test").put(event("old")).changes())
    state.answer.set()
    state.fault, state.only = fault, event("old").value()
    await store.settle()
    assert store.serves
    others = EventRow(boot=1, sequence=2, time=1, kind="test", who="me", sentence="other")
    await store.commit(Batch(b"2", note="test").put(others).changes())
    newer = Batch(b"3", note="test").put(event("new")).changes()
    with pytest.raises(type(fault)):
        await store.commit(newer)
    assert list(state.rows.values()) == [others.value()]
    state.fault = None
    await store.commit(newer)
    assert not store.journal.waiting
    await store.settle()
    assert sorted(filter(None, state.rows.values())) == sorted([event("new").value(), others.value()])


async def test_what_goes_first_goes_behind_what_waits_of_its_other_rows(table: tuple[Table, Store]) -> None:
    state, store = table
    state.answer.set()
    state.fault, state.only = StoreFull("the store", 2, 1), event("first").value()
    for number, rows in enumerate(([event("first")], [event("second"), numbered(2, "second")])):
        store.journal.wait(Batch(b"%d" % number, note="test").put(*rows).changes())
    third = Batch(b"3", note="test").put(numbered(2, "third")).changes()
    with pytest.raises(StoreFull):
        await store.commit(third)
    state.fault = None
    await store.commit(third)
    await store.settle()
    assert set(state.rows.values()) == {event("second").value(), numbered(2, "third").value()}


async def test_rows_that_nobody_waits_for_do_not_go_before_what_waits_of_them(
    table: tuple[Table, Store],
) -> None:
    state, store = table
    store.lost()
    await store.commit_or_keep(Batch(b"1", note="test").put(event("old")).changes())
    state.answer.set()
    state.fault, state.only = Overloaded("state"), event("old").value()
    await store.settle()
    store.later(Batch(b"2", note="test").put(event("new")))
    await store.flush()
    assert not state.rows
    state.fault = None
    await store.flush()
    await store.settle()
    assert list(state.rows.values()) == [event("new").value()]


@pytest.fixture
async def refused(table: tuple[Table, Store]) -> tuple[Table, Store]:
    """A store that serves, and once had no room for a row that waits in the journal."""
    state, store = table
    store.lost()
    await store.commit_or_keep(Batch(b"1", note="test").put(numbered(2, "before")).changes())
    state.answer.set()
    state.fault = StoreFull("the store", 2, 1)
    await store.settle()
    state.fault, state.asked, state.answer = None, trio.Event(), trio.Event()
    return state, store


def numbered(sequence: int, sentence: str) -> EventRow:
    return EventRow(boot=1, sequence=sequence, time=1, kind="test", who="me", sentence=sentence)


async def test_a_row_that_nobody_waits_for_is_not_sent_after_a_newer_one_that_waits_for_nothing(
    refused: tuple[Table, Store],
) -> None:
    """It is among others of which some wait in the journal: these go first, and meanwhile somebody decides on it anew."""
    state, store = refused
    store.later(Batch(b"2", note="test").put(event("old"), numbered(2, "after")))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.flush)
        await state.asked.wait()
        nursery.start_soon(store.commit, Batch(b"3", note="test").put(event("new")).changes())
        await trio.testing.wait_all_tasks_blocked()
        state.answer.set()
    await store.flush()
    assert set(state.rows.values()) == {event("new").value(), numbered(2, "after").value()}


async def test_those_who_wait_for_the_same_row_of_the_journal_go_in_the_order_in_which_they_decided(
    refused: tuple[Table, Store],
) -> None:
    """The event loop wakes them in any order."""
    state, store = refused
    async with trio.open_nursery() as nursery:
        for number in range(8):
            decided = Batch(b"%d" % (10 + number), note="test").put(numbered(2, f"{number}"))
            nursery.start_soon(store.commit, decided.changes())
            await trio.testing.wait_all_tasks_blocked()
        state.answer.set()
    decided_on = [value for value in state.sent if value != numbered(2, "before").value()]
    assert decided_on == [numbered(2, f"{number}").value() for number in range(8)]


async def test_a_store_that_is_lost_while_what_waited_is_committed_does_not_serve(
    table: tuple[Table, Store],
) -> None:
    state, store = table
    store.lost()
    await store.commit_or_keep(Batch(b"1", note="test").put(event("it was")).changes())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.settle)
        await state.asked.wait()
        store.lost()
        state.answer.set()
    assert not store.serves
