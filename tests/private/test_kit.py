"""A private keyspace as its server has it: over the store in memory and the node's own server of keys."""

import errno
import math
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.ipc import Interface, Private, Serves, testing
from atoll.ipc.durable import Workflow, durable
from atoll.ipc.errors import InternalFault, PeerMisbehaved, Purged
from atoll.ipc.runtime.describe import describe
from atoll.ipc.system.keys import SUBJECT_MOST, KeyringUnwritable
from atoll.servers.keys.root import FileRoot
from tests.private.packages.diary.interface import Diary, Entry, Told
from tests.private.packages.diary.server import Server


@pytest.fixture
def running() -> Iterator[testing.Running]:
    with testing.running(Server) as found:
        yield found


def test_what_is_written_is_read_and_the_store_has_none_of_it(running: testing.Running) -> None:
    diary = running.client(Diary)
    diary.write.now("a", "ann", "a planted phrase")
    assert diary.read.now("a") == Entry("ann", "a planted phrase")
    assert diary.append.now("a", ", and more") == Entry("ann", "a planted phrase, and more")
    diary.write_both.now("b", "c", "bob", "other words")
    assert [told.text for told in diary.all.now()] == [
        "a planted phrase, and more",
        "other words",
        "other words",
    ]
    assert [told.text for told in diary.past.now("a")] == ["a planted phrase, and more", "a planted phrase"]
    raw = diary.raw.now("a")
    assert raw.startswith(b"\xc1\x01") and b"planted" not in raw and b"ann" not in raw
    diary.write.now("a", "ann", "a planted phrase, and more")
    assert diary.raw.now("a") != raw
    assert diary.read.now("nothing") is None


def test_a_purge_takes_the_words_of_one_and_no_others(running: testing.Running) -> None:
    diary = running.client(Diary)
    diary.write.now("a", "ann", "first")
    diary.write.now("a", "ann", "second")
    diary.write.now("b", "bob", "third")
    done = running.purge("ann")
    assert (done.repeated, done.holding, done.keyspaces) == (False, [], 1)
    with pytest.raises(Purged, match="whom the row 'a' is about was purged"):
        diary.read.now("a")
    assert diary.all.now() == [Told("a", None, True), Told("b", "third", False)]
    assert diary.past.now("a") == [Told("a", None, True), Told("a", None, True)]
    for refused in (lambda: diary.write.now("d", "ann", "new"), lambda: diary.append.now("a", "more")):
        with pytest.raises(Purged):
            refused()
    again = running.purge("ann")
    assert again.repeated and again.number == done.number
    assert diary.write.now("a", "bob", "instead") and diary.read.now("a") == Entry("bob", "instead")


def test_rows_that_changed_places_are_refused(running: testing.Running) -> None:
    diary = running.client(Diary)
    diary.write.now("a", "ann", "first")
    diary.write.now("b", "ann", "second")
    diary.swap.now("a", "b")
    with pytest.raises(PeerMisbehaved, match="not sealed for this key"):
        diary.read.now("a")
    diary.swap.now("a", "b")
    assert diary.read.now("a") == Entry("ann", "first")


def test_hashes_are_the_keyspaces_own(running: testing.Running) -> None:
    diary = running.client(Diary)
    name = diary.name_of.now("ann@example.org")
    assert len(name) == 32 and name == diary.name_of.now("ann@example.org") != diary.name_of.now("bob")
    with testing.running(Server) as other:
        assert other.client(Diary).name_of.now("ann@example.org") != name


def test_a_value_that_names_nobody_is_refused(running: testing.Running) -> None:
    with pytest.raises(InternalFault, match="names whom it is about"):
        running.client(Diary).write.now("a", "", "words")


def test_a_subject_that_could_not_be_purged_is_not_written(running: testing.Running) -> None:
    diary = running.client(Diary)
    diary.write.now("a", "x" * SUBJECT_MOST, "words")
    assert running.purge("x" * SUBJECT_MOST).number
    with pytest.raises(InternalFault, match="400 bytes at most"):
        diary.write.now("a", "x" * (SUBJECT_MOST + 1), "words")


def test_durable_methods_and_a_private_keyspace_do_not_go_together() -> None:
    class Tasks(Interface):
        @durable("run")
        def run(self, text: str) -> None: ...

    class Both(Serves[Tasks]):
        words: Private[Entry]

        @Tasks.run.serve
        async def run_(self, flow: Workflow, text: str) -> None: ...

    with pytest.raises(TypeError, match="durable methods, whose arguments and results are rows in the clear"):
        describe(Both)
    with (
        pytest.raises(TypeError, match="the private keyspace 'words'"),
        testing.running(Both),
    ):
        pass


def test_a_write_that_waits_for_its_key_is_not_overtaken(running: testing.Running) -> None:
    """What was deleted after it was written came back: the deletion needs no key, and was first at the store."""
    diary = running.client(Diary)
    for subject in ("ann", "ann", "bob"):  # of the first and the last no key is at hand
        diary.unsay.now("a", subject, "words")
        assert diary.read.now("a") is None


def test_a_purge_that_the_disk_took_but_for_its_end_is_told_and_recorded(
    running: testing.Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had been made, and cannot be undone; whoever had the key went on reading, and the store knew nothing of it."""
    diary, keys = running.client(Diary), running._keys
    assert keys is not None
    server: Any = keys.endpoint.server
    diary.write.now("a", "ann", "words")

    def full(self: FileRoot) -> None:
        raise OSError(errno.ENOSPC, "no space is left")

    with monkeypatch.context() as patched:
        patched.setattr(FileRoot, "end", full)
        with pytest.raises(KeyringUnwritable):
            running.purge("ann")
    (made,) = server._ring.contents.purges

    async def told() -> list[str]:
        behind: list[str] = await server._holders.without({made.badge: made.number}, math.inf)
        return behind

    async def recorded() -> list[int]:
        return [row.value.number async for row in server.rows.range("purge/", "purge0")]

    assert running._host.wait_for(told) == []
    with pytest.raises(Purged):
        diary.read.now("a")
    assert running._host.wait_for(recorded) == [made.number]


def test_keys_that_are_refused_for_a_moment_come_later(running: testing.Running) -> None:
    """As by a new process of `keys`, which hears of a request before it hears of the stream."""
    keys = running._keys
    assert keys is not None
    holders = keys.endpoint.server._holders  # type: ignore[attr-defined]

    async def forget() -> dict[tuple[int, int], object]:
        known = dict(holders._held)
        holders._held.clear()
        return known

    async def know(known: dict[tuple[int, int], object]) -> None:
        holders._held.update(known)

    diary = running.client(Diary)
    diary.write.now("a", "ann", "first")
    known = running._host.wait_for(forget)
    later = diary.write.start("b", "bob", "second")
    assert diary.read.now("a") == Entry("ann", "first")
    running._host.wait_for(know, known)
    assert later.result() and diary.read.now("b") == Entry("bob", "second")
