"""Records as a trainer takes them: TRL's columns, texts looked up, each row's origin, the same bytes for ever."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.servers.feedback.datasets import SMALL, Datasets, Row
from atoll.servers.feedback.export import lines, moment, write
from atoll.servers.feedback.interface import Batch, NoSuchTask, Rater
from atoll.servers.feedback.records import Correction, Preference, Record
from atoll.servers.storage.interface import BlobRef

from .conftest import Node
from .said import rating

LONG = "long " * SMALL


@pytest.fixture
def data(node: Node) -> Datasets:
    """One task with every kind of record, and texts inline, in packs and in files."""
    node.storage.put_many.now([b"packed", b"broken \xff"])
    node.storage.put.now([LONG.encode()[at : at + 50_000] for at in range(0, len(LONG), 50_000)])
    packed, broken, long = (BlobRef.of(each) for each in (b"packed", b"broken \xff", LONG.encode()))

    def said(**fields: Any) -> dict[str, Any]:
        return {"rater": "ann", "role": "expert", "trust": 0.8, "task": "film", "prompt": "p"} | fields

    held: list[Record] = [
        Preference(**said(chosen=packed, rejected="worse")),
        Correction(**said(text="wrong", corrected=long)),
        rating("good", 1.0, prompt="q", rater="bob"),
        rating(broken, 0.0, prompt="q", rater="cy"),
    ]
    assert node.feedback.submit.now(Batch("b", held)).records == 4
    return Datasets(node.feedback, node.storage)


def without_origin(rows: Iterator[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name not in ("trust", "sources")} for row in rows]


def test_each_type_has_its_columns(data: Datasets) -> None:
    assert without_origin(data.preferences("film")) == [
        {"prompt": "p", "chosen": LONG, "rejected": "wrong"},
        {"prompt": "p", "chosen": "packed", "rejected": "worse"},
    ]
    assert without_origin(data.pairs("film", 10)) == [
        {"prompt": "q", "chosen": "good", "rejected": "broken \ufffd", "margin": 1.0}
    ]
    assert without_origin(data.unpaired("film", good=1.0)) == [
        {"prompt": "p", "completion": LONG, "label": True},
        {"prompt": "p", "completion": "wrong", "label": False},
        {"prompt": "p", "completion": "packed", "label": True},
        {"prompt": "p", "completion": "worse", "label": False},
        {"prompt": "q", "completion": "good", "label": True},
        {"prompt": "q", "completion": "broken \ufffd", "label": False},
    ]
    assert without_origin(data.completions("film")) == [{"prompt": "p", "completion": LONG}]


def test_each_row_says_how_far_it_is_trusted_and_where_it_comes_from(data: Datasets, node: Node) -> None:
    node.feedback.appoint.now(Rater("bob", trust=0.1))
    revision = node.feedback.batch.now("b").revision
    (row,) = data.pairs("film", 10)
    assert row["trust"] == 0.1
    assert row["sources"] == [
        {"batch": "b", "index": 2, "rater": "bob", "revision": revision},
        {"batch": "b", "index": 3, "rater": "cy", "revision": revision},
    ]
    assert [each["trust"] for each in data.preferences("film", min_trust=0.7)] == [0.8, 0.8]
    assert list(data.preferences("film", min_trust=0.9)) == []


def test_texts_may_be_messages(data: Datasets) -> None:
    row = list(data.preferences("film", conversational=True))[1]
    assert row["prompt"] == [{"role": "user", "content": "p"}]
    assert row["chosen"] == [{"role": "assistant", "content": "packed"}]
    assert row["rejected"] == [{"role": "assistant", "content": "worse"}]


def test_the_moment_is_fixed_when_the_iterator_is_made(data: Datasets, node: Node) -> None:
    moment = data.moment()
    rows = data.unpaired("film")
    node.feedback.rollback.now("b", "test")
    assert len(list(rows)) == 6
    assert list(data.unpaired("film")) == []
    assert len(list(data.unpaired("film", as_of=moment))) == 6
    with pytest.raises(NoSuchTask):
        list(data.preferences("flim"))


def test_a_file_of_a_moment_has_the_same_bytes_whatever_came_later(
    data: Datasets, node: Node, tmp_path: Path
) -> None:
    moment = data.moment()
    first = write(tmp_path / "first.jsonl", data.unpaired("film", moment))
    node.feedback.submit.now(Batch("c", [rating("new", 1.0)]))
    node.feedback.appoint.now(Rater("ann", trust=0.0))
    node.feedback.rollback.now("b", "test")
    again = write(tmp_path / "again.jsonl", data.unpaired("film", moment))
    assert again == first
    content = (tmp_path / "first.jsonl").read_bytes()
    assert content == (tmp_path / "again.jsonl").read_bytes()
    rows = [msgspec.json.decode(line) for line in content.splitlines()]
    assert rows == list(data.unpaired("film", moment))
    assert (len(rows), len(content)) == (first.rows, first.bytes)
    assert write(tmp_path / "now.jsonl", data.unpaired("film")).hash != first.hash


def test_a_file_that_was_not_finished_does_not_take_the_place_of_one(data: Datasets, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    write(path, data.completions("film"))
    before = path.read_bytes()

    def broken() -> Iterator[Row]:
        yield {"text": "one"}
        raise RuntimeError("the node went down")

    with pytest.raises(RuntimeError):
        write(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.glob(".*")) == []


def test_a_file_is_written_when_its_name_is_durable(
    data: Datasets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "set.jsonl", list[tuple[int, bool]](), os.fsync

    def watched(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write(path, data.completions("film"))
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_many_rows_come_in_parts(node: Node) -> None:
    texts = [f"text {number} ".encode() * 1000 for number in range(50)]
    for start in range(0, 50, 25):
        refs = node.storage.put_many.now(texts[start : start + 25])
        held: list[Record] = [rating(ref, 1.0) for ref in refs]
        node.feedback.submit.now(Batch(f"b{start:02d}", held))
    data = Datasets(node.feedback, node.storage)
    assert [row["completion"].encode() for row in data.unpaired("film")] == texts
    assert sum(1 for _ in lines(data.unpaired("film"))) == 50


def test_a_moment_is_a_revision_or_a_time() -> None:
    assert moment("17") == 17
    assert moment("2026-01-01T00:00:00+00:00") == 1767225600.0
    with pytest.raises(ValueError, match="yesterday"):
        moment("yesterday")
