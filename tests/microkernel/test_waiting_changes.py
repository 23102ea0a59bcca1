"""Changes that wait in the journal for the store: where the journal's disk has no room to note that they are rows, and
where the store dies while it is asked to make rows of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from atoll.ipc.system.records import EventRow
from atoll.ipc.system.state import Write
from atoll.microkernel.changes import Batch
from atoll.microkernel.journal import create
from atoll.microkernel.store import Store


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
