"""The checker names each harm that is done to the rows behind the server's back."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import structs

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.private.keyspace import Private
from atoll.ipc.system.state import Write
from atoll.servers.feedback.interface import Batch, Checked, Feedback, NoSuchTask
from atoll.servers.feedback.rows import Head, Row, Segment
from atoll.servers.feedback.server import Server
from atoll.servers.feedback.texts import OWNER
from atoll.servers.feedback.words import Words
from atoll.servers.storage.interface import Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from .said import rating, ratings, set_of


class Harmed(NamedTuple):
    feedback: Feedback
    storage: Storage
    rows: Keyspace[Row]
    words: Private[Words]

    def get(self, key: str) -> Any:
        item = self.rows.state.get.now(key.encode())
        assert item is not None and item.value is not None
        return self.rows._form.decode(item.value)

    def put(self, key: str, row: Row | None) -> None:
        value = None if row is None else self.rows._form.encode(row)
        self.rows.state.commit.now([Write(key.encode(), value)])

    def problems(self) -> list[str]:
        return self.feedback.check.now().problems


@pytest.fixture
def node(serve: Any, tmp_path: Path) -> Harmed:
    config = StorageSettings(collect_every=0.0)
    storage: Storage = serve(StorageServer, folder=tmp_path, config=config).client(badge=3)
    rows = serve.keyspace("feedback", Row)
    words = serve.private("words", Words)
    feedback: Feedback = serve(Server, storage=storage, rows=rows, words=words).client()
    ref = storage.put_many.now([b"a long text"])[0]
    feedback.submit.now(Batch("b", [*ratings(4), rating(ref, 1.0)]))
    feedback.submit.now(Batch("c", ratings(4)))
    feedback.rollback.now("c", "test")
    found = Harmed(feedback, storage, rows, words)
    assert found.feedback.check.now() == Checked(2, 5, found.feedback.check.now().revision, [], [])
    return found


KEY = "set/film/rating/1/b/0000"
WORDLESS = "set/film/rating/5/b/0000"


def test_a_lost_segment(node: Harmed) -> None:
    node.put(KEY, None)
    assert node.problems() == [f"batch b: its head names {KEY}, and there is no such row"]


def test_a_segment_that_is_left(node: Harmed) -> None:
    segment = node.get(KEY)
    node.put("set/film/rating/1/c/0000", structs.replace(segment, batch="c"))
    assert node.problems() == ["set/film/rating/1/c/0000 is named by no head of a stored batch"]


def test_a_changed_record(node: Harmed) -> None:
    segment: Segment = node.get(KEY)
    node.put(KEY, structs.replace(segment, records=[structs.replace(segment.records[0], score=0.9)]))
    assert node.problems() == ["batch b: its records are not those that were submitted"]


def test_words_that_are_not_those_of_the_record(node: Harmed) -> None:
    segment: Segment = node.get(KEY)
    node.put(KEY, structs.replace(segment, records=[structs.replace(segment.records[0], rater="mallory")]))
    assert node.problems() == [f"batch b: the words at {KEY}/0000 are not what was submitted"]
    with pytest.raises(PeerMisbehaved, match="other words there than were submitted"):
        set_of(node.feedback)


def test_lost_words_and_words_that_are_left(node: Harmed) -> None:
    state = node.words.state
    (row,) = state.range.now(f"{KEY}/".encode(), f"{KEY}0".encode()).items
    state.commit.now([Write(row.key, None)])
    assert node.problems() == [f"batch b: the words at {KEY}/0000 are not what was submitted"]
    state.commit.now([Write(row.key, row.value)])
    segment = node.get(KEY)
    node.put(KEY, structs.replace(segment, records=[structs.replace(segment.records[0], text="text 1")]))
    assert node.problems() == [f"batch b: the words at {KEY}/0000 are not what was submitted"]


def test_a_record_too_many_and_one_too_few(node: Harmed) -> None:
    segment: Segment = node.get(KEY)
    node.put(KEY, structs.replace(segment, indexes=[*segment.indexes, 0], records=segment.records * 2))
    assert node.problems() == ["batch b: its segments hold 6 records, and its head says 5"]
    node.put(KEY, structs.replace(segment, indexes=[], records=[]))
    assert node.problems() == ["batch b: its segments hold 4 records, and its head says 5"]


def test_a_record_under_another_trust(node: Harmed) -> None:
    head: Head = node.get("batch/b")
    other = "set/film/rating/9/b/0000"
    node.put(other, node.get(WORDLESS))
    node.put(WORDLESS, None)
    node.put(
        "batch/b",
        structs.replace(head, segments=[other if key == WORDLESS else key for key in head.segments]),
    )
    assert node.problems() == ["batch b: a record lies under another task, kind or trust than its own"]


def test_a_head_that_counts_wrongly_and_a_task_that_is_unknown(node: Harmed) -> None:
    head: Head = node.get("batch/b")
    groups = [structs.replace(head.info.groups[0], band=9), *head.info.groups[1:]]
    node.put("batch/b", structs.replace(head, info=structs.replace(head.info, groups=groups)))
    node.put("task/film", None)
    assert node.problems() == [
        "batch b: its head counts other groups than its records make",
        "batch b: its task film is not among those known",
    ]


def test_a_text_that_may_be_collected_and_a_reference_too_many(node: Harmed) -> None:
    (name,) = node.storage.references.now(OWNER)
    node.storage.release.now(OWNER, name)
    assert node.problems() == ["batch b: nothing in storage refers to its texts, so they may be collected"]
    node.storage.refer.now([], OWNER, "x/y")
    assert node.feedback.check.now().stray == ["x/y"]


def test_a_hundred_problems_are_told_and_the_others_counted(node: Harmed) -> None:
    segment = node.get(KEY)
    for number in range(120):
        node.put(f"set/film/rating/1/x/{number:04d}", segment)
    told = node.problems()
    assert (len(told), told[-1]) == (101, "and 20 more")


def test_a_task_that_was_rolled_back_with_the_keyspace_is_there_with_the_next_batch(node: Harmed) -> None:
    """`atoll rollback` writes rows as they were, and what the server remembers of them is its own affair."""
    [ref] = node.storage.put_many.now([b"a play"])
    batch = Batch("first", [rating(ref, 1.0, task="play")])
    before = node.feedback.head.now()
    done = node.feedback.submit.now(batch).revision
    keys = {item.key for change in node.rows.state.changes.now(before, done) for item in change.items}
    node.rows.state.commit.now([Write(key) for key in keys])
    with pytest.raises(NoSuchTask):
        list(node.feedback.training_set.now("play"))
    node.feedback.submit.now(structs.replace(batch, id="second"))
    assert [stored.batch for stored in node.feedback.records.now() if stored.record.task == "play"] == [
        "second"
    ]
    assert node.problems() == []
