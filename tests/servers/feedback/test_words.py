"""What raters wrote is sealed, and gone with them: counts, origins and everybody else's words stay."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.keyspace import Keyspace, Row
from atoll.ipc.private.envelope import is_sealed
from atoll.ipc.private.keyspace import Private
from atoll.ipc.system.keys import Keys
from atoll.ipc.system.state import Write
from atoll.servers.feedback.datasets import Datasets
from atoll.servers.feedback.interface import Batch, Feedback, Invalid
from atoll.servers.feedback.records import Correction, Preference, Record, is_purged, words_of
from atoll.servers.feedback.rows import Head, Segment, digest, head_key, split
from atoll.servers.feedback.rows import Row as FeedbackRow
from atoll.servers.feedback.server import Server
from atoll.servers.feedback.words import Words, apart, together
from atoll.servers.storage.interface import BlobRef, Storage
from atoll.servers.storage.server import Server as StorageServer
from atoll.servers.storage.server import Settings as StorageSettings

from .said import rating, set_of

ANN, BOB = ({"rater": rater, "role": "expert", "trust": 0.9, "task": "film"} for rater in ("ann", "bob"))


class Node(NamedTuple):
    feedback: Feedback
    storage: Storage
    rows: Keyspace[FeedbackRow]
    words: Private[Words]
    keys: Keys

    def sealed(self) -> list[bytes]:
        return [item.value or b"" for item in self.words.state.range.now(b"").items]

    def everything(self) -> bytes:
        return b"".join(
            (item.value or b"")
            for keyspace in (self.rows, self.words)
            for row in keyspace.state.range.now(b"").items
            for item in keyspace.state.history.now(row.key)
        )


@pytest.fixture
def node(serve: Any, tmp_path: Path) -> Node:
    storage = serve(StorageServer, folder=tmp_path, config=StorageSettings(collect_every=0.0)).client(badge=3)
    rows, words = serve.keyspace("feedback", FeedbackRow), serve.private("words", Words)
    feedback = serve(Server, storage=storage, rows=rows, words=words).client()
    return Node(feedback, storage, rows, words, serve.keys())


def said(node: Node) -> list[Record]:
    """Of two raters, every kind, in the order of a set."""
    ref = node.storage.put_many.now([b"a text in storage"])[0]
    return [
        Correction(text="a typpo", corrected="a typo", prompt="mend it", **ANN),  # type: ignore[arg-type]
        Preference(chosen=ref, rejected="as long", prompt="which", **BOB),  # type: ignore[arg-type]
        Preference(chosen="short", rejected="long", **ANN),  # type: ignore[arg-type]
        rating("planted by ann", 1.0, 0.9, rater="ann", prompt="film?"),
        rating("planted by bob", 0.5, 0.9, rater="bob", prompt="film?"),
        rating("and by bob", 0.0, 0.9, rater="bob", prompt="film?"),
        rating(ref, 0.25, 0.9, rater="ann"),
    ]


def test_the_rows_have_none_of_the_words_and_readers_have_all(node: Node) -> None:
    held = said(node)
    assert node.feedback.submit.now(Batch("b", held)).records == 7
    assert set_of(node.feedback) == held
    everything = node.everything()
    for words in (b"typ", b"mend it", b"as long", b"short", b"planted", b"film?"):
        assert words not in everything
    assert digest(Batch("b", held)) not in everything, "a plain hash is as good as a short word"
    assert len(node.sealed()) == 5 and all(map(is_sealed, node.sealed()))
    assert node.feedback.submit.now(Batch("b", held)).repeated
    assert node.feedback.check.now().problems == []


def test_a_purged_raters_words_are_gone_from_every_moment_and_nothing_else_is(node: Node) -> None:
    held = said(node)
    before = node.feedback.submit.now(Batch("b", held)).revision
    counts, data = node.feedback.statistics.now().tasks, Datasets(node.feedback, node.storage)
    first = list(data.preferences("film", before))
    node.keys.purge.now("ann")
    for moment in (before, None):
        left = set_of(node.feedback, as_of=moment)
        assert [is_purged(record) for record in left] == [True, False, True, True, False, False, False]
        assert [left[at] for at in (1, 4, 5, 6)] == [held[at] for at in (1, 4, 5, 6)]
        assert [record.rater for record in left] == [record.rater for record in held]
        rows = data.preferences("film", moment)
        assert list(rows) == [row for row in first if row["sources"][0]["rater"] == "bob"]
        assert rows.purged == 2
        (pair,) = data.pairs("film", 10, as_of=moment)
        assert (pair["chosen"], pair["rejected"]) == ("planted by bob", "and by bob")
    assert node.feedback.statistics.now().tasks == counts
    checked = node.feedback.check.now()
    assert (checked.problems, checked.stray, checked.records, checked.purged) == ([], [], 7, 3)
    assert node.feedback.agreement.now("film", before).items == 0


def test_who_was_purged_can_write_no_more_and_what_they_sent_before_is_known(node: Node) -> None:
    batch = Batch("b", said(node))
    node.feedback.submit.now(batch)
    node.keys.purge.now("ann")
    assert node.feedback.submit.now(batch).repeated
    ref = node.storage.put_many.now([b"another text"])[0]
    with pytest.raises(
        Invalid, match=r"a rater who was not purged .*, got 'ann' - at `\$.records\[1\].rater`"
    ):
        node.feedback.submit.now(
            Batch("c", [rating(ref, 0.5, rater="bob"), rating("more", 0.5, rater="ann")])
        )
    assert node.feedback.check.now().stray == []
    assert node.feedback.submit.now(Batch("c", [rating(ref, 0.5, rater="ann")])).records == 1


def test_a_roll_back_takes_the_words_and_the_past_has_them(node: Node) -> None:
    held = said(node)
    before = node.feedback.submit.now(Batch("b", held)).revision
    node.feedback.rollback.now("b", "test")
    assert (node.sealed(), set_of(node.feedback), set_of(node.feedback, as_of=before)) == ([], [], held)
    assert node.feedback.check.now().problems == []


def put_as_before(node: Node, batch: Batch) -> None:
    """A batch as it was stored before words were sealed."""
    info = node.feedback.submit.now(Batch("model", batch.records)) and node.feedback.batch.now("model")
    node.feedback.rollback.now("model", "only its head was wanted")
    groups, segments = split(batch)
    old: dict[str, FeedbackRow] = dict(segments)
    fields = {name: getattr(info, name) for name in info.__struct_fields__}
    head = Head(type(info)(**fields | {"id": batch.id, "groups": groups}), digest(batch), list(segments))
    encode = node.rows._form.encode
    writes = [Write(key.encode(), encode(row)) for key, row in old.items()]
    packed = encode(head)
    node.rows.state.commit.now([*writes, Write(head_key(batch.id).encode(), packed)])


def test_what_was_stored_before_words_were_sealed_reads_as_it_was(node: Node) -> None:
    batch = Batch("old", said(node)[2:6])
    put_as_before(node, batch)
    assert set_of(node.feedback) == batch.records
    assert node.feedback.check.now().problems == []
    assert node.feedback.submit.now(batch).repeated
    before = node.feedback.head.now()
    node.feedback.rollback.now("old", "test")
    assert (set_of(node.feedback), set_of(node.feedback, as_of=before)) == ([], batch.records)


texts = st.one_of(st.text(min_size=1, max_size=5), st.builds(BlobRef.of, st.binary(max_size=3)))
RECORDS = st.lists(
    st.builds(
        lambda text, prompt, rater: rating(text, 0.5, rater=rater, prompt=prompt),
        texts, st.one_of(st.just(""), texts), st.sampled_from(["ann", "bob", "cy"]),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(RECORDS, st.sets(st.sampled_from(["ann", "bob", "cy"])))
def test_apart_and_together_again(records: list[Record], purged: set[str]) -> None:
    whole = Segment("b", list(range(len(records))), records)
    held, said = apart("set/b/0", whole)
    assert not any(map(words_of, held.records))
    rows: dict[str, Row[Words]] = {
        key: Row(key, None if words.rater in purged else words, 1, 1, words.rater in purged)
        for key, words in said.items()
    }
    opened = together("set/b/0", held, rows)
    gone = [bool(words_of(record)) and record.rater in purged for record in records]
    assert opened.wrong == [] and opened.purged == sum(gone)
    for before, after, without in zip(records, opened.segment.records, gone, strict=True):
        assert without == is_purged(after) and (without or after == before)
    for key in rows:
        assert together("set/b/0", held, {at: row for at, row in rows.items() if at != key}).wrong == [key]
    assert together("set/b/0", held, rows | {"set/b/0/9": Row("set/b/0/9", None, 1, 1, True)}).wrong == [
        "set/b/0/9"
    ]
