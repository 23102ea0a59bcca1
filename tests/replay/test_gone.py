"""Calls whose version or whose past is gone: it is said so, and nothing is made up."""

from pathlib import Path

import pytest

from atoll.ipc.errors import NotFound
from tests.microkernel.nodes import booted

from .conftest import IMAGE, PACKAGES, Recording

FORGETFUL = IMAGE.replace("[keyspace.till]", '[keyspace.till]\nretention = "0s"').replace(
    "[server.state]\nneeds = {}",
    "[server.state]\nneeds = { config = { config = { grace = 0.0, compact_every = 0.02 } } }",
)


def test_a_call_whose_version_is_gone_is_said_to_be_and_another_version_answers_it(
    recording: Recording, tmp_path: Path
) -> None:
    recording.till.add.now("v", 8)
    id = recording.made("till", "total", lambda: recording.till.total.now("v"))
    version = recording.again(id).version
    folder = recording.node.folder / "versions" / version
    folder.rename(tmp_path / "gone")
    try:
        with pytest.raises(NotFound) as gone:
            recording.again(id)
        report = recording.again(id, PACKAGES / "till")
    finally:
        (tmp_path / "gone").rename(folder)
    told = f"there is no version of till in the node's folder '{version}': see `atoll versions`"
    assert str(gone.value) == told
    assert (report.verdict, report.differences) == ("same", [])


def test_a_call_whose_past_is_given_up_is_not_replayable(tmp_path: Path) -> None:
    """Neither one that saw its local view, nor one that read the store: the rows of then are no more."""
    assert FORGETFUL.count("retention") == FORGETFUL.count("compact_every") == 1
    with booted(tmp_path, text=FORGETFUL) as node, node.attach() as attached:
        recording = Recording(node, attached)
        till, state = recording.till, attached.keyspace("till")
        till.add.now("a", 1)
        ids = [
            recording.made("till", "total", lambda: till.total.now("a")),
            recording.made("till", "twice", lambda: till.twice.now("a", "eur")),
        ]
        then = state.head.now()
        while state.horizon.now().revision <= then:
            till.add.now("a", 1)
        for id in ids:
            report = recording.again(id)
            assert report.verdict == "not replayable"
            assert report.reasons[0].startswith("what it read of rows is no longer kept: revision ")
            assert "is no longer kept: ask for " in report.reasons[0]
