"""What raters write, on a node: in none of its files, and after a purge in no copy that was ever made of it."""

from collections.abc import Iterator

import msgspec
import pytest

from atoll.ipc.attach import connect
from atoll.ipc.naming import badge_number
from atoll.ipc.system.keys import tag_of
from atoll.servers.feedback.interface import Batch, Feedback, Invalid
from atoll.servers.feedback.records import Correction, Record
from tests.servers.feedback.said import rating, set_of
from tests.servers.feedback.test_job import IMAGE, export
from tests.shell.conftest import Shell, shell

from .test_node import home, kept_keys, kept_store, kill, ring
from .thief import Read, holding, in_backup, in_store, read

PHRASE = "a phrase that a rater planted"
WORDS = badge_number("words")
SAID: list[Record] = [
    Correction("ann", "expert", 0.9, "film", text="as it was", corrected=PHRASE, prompt=f"why {PHRASE}?"),
    rating(f"{PHRASE}, twice", 1.0, rater="ann"),
    rating("kept of bob", 0.5, rater="bob"),
]


@pytest.fixture(scope="module")
def person() -> Iterator[Shell]:
    with shell() as running:
        (running.folder / "image.toml").write_text(IMAGE)
        running.said("boot", "image.toml", "--folder", "node", "--detach")
        try:
            yield running
        finally:
            running.said("shutdown")
        assert running.said("check", "node").endswith(": whole\n")


def told(found: Read) -> str:
    """All that opened, as one text."""
    return repr(found.words)


def test_a_raters_words_are_in_no_file_and_after_a_purge_in_none_that_was(person: Shell) -> None:
    with connect(str(home(person))) as node:
        feedback = node.open("feedback", Feedback)
        before = feedback.submit.now(Batch("b", SAID)).revision
        with pytest.raises(Invalid):
            feedback.submit.now(Batch("c", [rating(PHRASE, 7.0)]))
        kill(person, "feedback")
        assert set_of(feedback) == SAID
        feedback.rollback.now("b", "to have a past")
        feedback.submit.now(Batch("d", SAID))
        person.said("backup", "before", "--node", str(home(person)))
        old_store = kept_store(person, "old store")
        for place in (home(person), person.folder / "before", old_store):
            assert holding(place, b"to have a past"), "the scan finds what is there"
            assert holding(place, PHRASE.encode()) == []
        then = ring(kept_keys(person, "keys of then"))
        counts = feedback.statistics.now().tasks
        done = person.json("purge", "ann")
        assert (done["holding"], done["keyspaces"]) == ([], 1)
        for moment in (before, None):
            assert [text.rater for text in set_of(feedback, as_of=moment)] == ["ann", "ann", "bob"]
            assert set_of(feedback, as_of=moment)[2] == SAID[2]
            assert PHRASE not in repr(set_of(feedback, as_of=moment))
        checked = feedback.check.now()
        assert (checked.problems, checked.records, checked.purged) == ([], 3, 2)
        assert feedback.statistics.now().tasks == counts
    today = ring(home(person) / "data" / "keys")
    new_store, backup = kept_store(person, "new store"), person.folder / "before"
    for rows in (in_store(old_store), in_store(new_store), in_backup(backup)):
        assert PHRASE in told(read(rows, then, WORDS)), "it is there, sealed"
        found = read(rows, today, WORDS)
        assert "kept of bob" in told(found) and PHRASE not in told(found)
        assert set(found.closed) == {bytes(1) + tag_of(today.index(WORDS), "ann")}
    newest = str(home(person) / "data" / "keys")
    person.said("restore", "before", "--folder", "again", "--name", "again", "--keyring", newest)
    assert holding(home(person, "again"), b"to have a past") and not holding(
        home(person, "again"), PHRASE.encode()
    )
    person.said("boot", "image.toml", "--folder", "again", "--name", "again", "--detach")
    try:
        with connect(str(home(person, "again"))) as node:
            left = set_of(node.open("feedback", Feedback))
            assert [record.rater for record in left] == ["ann", "ann", "bob"] and left[2] == SAID[2]
            assert PHRASE not in repr(left)
    finally:
        person.said("shutdown", "--node", str(home(person, "again")))


def test_an_export_leaves_out_whom_was_purged_and_says_so(person: Shell) -> None:
    with connect(str(home(person))) as node:
        held: list[Record] = [
            rating(f"text of {rater}", 1.0, rater=rater, task="export") for rater in ("cy", "dan")
        ]
        node.open("feedback", Feedback).submit.now(Batch("e", held))
    person.said("purge", "cy")
    written = person.folder / "export.jsonl"
    said, _ = export(home(person), "export", "--kind", "unpaired", f"--output={written}")
    (row,) = [msgspec.json.decode(line) for line in written.read_bytes().splitlines()]
    assert row["completion"] == "text of dan"
    assert said.endswith("; 1 more were left out, whose texts were purged\n")
