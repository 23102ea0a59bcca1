"""How a batch becomes rows, and which ranges a selection reads."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.servers.feedback.interface import Batch, Selection
from atoll.servers.feedback.records import KINDS, Correction, Preference, Rating, Record, band, kind_of
from atoll.servers.feedback.rows import SEGMENT_BYTES, SEGMENT_RECORDS, digest, fits, prefixes, split
from atoll.servers.storage.interface import BlobRef

TASKS = ["one", "two", "two.x"]


@st.composite
def records(draw: st.DrawFn) -> Record:
    task, trust = draw(st.sampled_from(TASKS)), draw(st.floats(0, 1))
    about = {"rater": "r", "role": "expert", "trust": trust, "task": task}
    match draw(st.sampled_from(KINDS)):
        case "preference":
            return Preference(**about, chosen="a", rejected="b")  # type: ignore[arg-type]
        case "correction":
            return Correction(**about, text="a", corrected="b")  # type: ignore[arg-type]
    return Rating(**about, text=BlobRef.of(b"x"), score=1.0)  # type: ignore[arg-type]


@given(st.lists(records(), min_size=1, max_size=30))
def test_every_record_lies_in_one_segment_of_its_group(held: list[Record]) -> None:
    groups, segments = split(Batch("b", held))
    found = {}
    for key, segment in segments.items():
        assert segment.batch == "b"
        for index, record in zip(segment.indexes, segment.records, strict=True):
            assert index not in found
            found[index] = record
            assert key.startswith(f"set/{record.task}/{kind_of(record)}/{band(record.trust)}/b/")
    assert [found[index] for index in range(len(held))] == held
    assert sum(group.records for group in groups) == len(held)


@given(st.lists(records(), min_size=1, max_size=30), st.data())
def test_a_selection_reads_all_that_fits_and_each_segment_once(
    held: list[Record], data: st.DataObject
) -> None:
    selection = Selection(
        task=data.draw(st.sampled_from(["", *TASKS])),
        kind=data.draw(st.sampled_from(["", *KINDS])),
        min_trust=data.draw(st.floats(0, 1)),
    )
    _, segments = split(Batch("b", held))
    read = [
        key
        for prefix in prefixes(selection, sorted(TASKS))
        for key in sorted(segments)
        if key.startswith(prefix)
    ]
    assert len(read) == len(set(read))
    found = [
        record for key in read for record in segments[key].records if fits(selection, record, record.trust)
    ]
    wanted = [record for record in held if fits(selection, record, record.trust)]
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


def test_five_hundred_ratings_are_few_rows_and_large_texts_many() -> None:
    small: list[Record] = [
        Rating("r", "critic", 0.75, "film", BlobRef.of(b"%d" % number), 1.0) for number in range(500)
    ]
    assert len(split(Batch("b", small))[1]) == 1
    assert len(split(Batch("b", small * 2))[1]) == -(-1000 // SEGMENT_RECORDS)
    large: list[Record] = [Rating("r", "critic", 0.75, "film", "x" * 4000, 1.0) for _ in range(100)]
    assert len(split(Batch("b", large))[1]) == -(-100 // (SEGMENT_BYTES // 4040))


def test_the_digest_tells_batches_apart() -> None:
    one: Record = Rating("r", "critic", 0.5, "film", "text", 1.0)
    other: Record = Rating("r", "critic", 0.5, "film", "text", 0.0)
    assert digest(Batch("a", [one, other])) == digest(Batch("b", [one, other], note="n"))
    assert digest(Batch("a", [one, other])) != digest(Batch("a", [other, one]))
