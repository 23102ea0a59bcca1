"""An import on a real node: its channels have a size, and others use it meanwhile."""

import shutil
from pathlib import Path

from atoll import images
from atoll.ipc.system.state import State
from atoll.servers import state as store
from atoll.servers.feedback.interface import Batch, Feedback
from atoll.servers.feedback.records import Rating
from atoll.servers.importer.interface import Importer
from atoll.servers.importer.server import LONGEST, PART
from atoll.servers.state.group import BULK_MOST
from atoll.servers.storage.interface import Storage
from tests.microkernel.nodes import booted

from ..feedback.test_job import IMAGE
from .files import TASK, batch, held, line, put, said

PIECE = 512 * 1024
RLHF = Path(images.__file__).parent / "rlhf.toml"
TEXTS, TEXT = 80, "x" * 4000
"""Of a large batch."""
IDLE = "    def idle(self) -> float | None:\n"
STATISTICS = "        return self._engine.statistics() | {\n"
COLLECTS = f"""    collected = False

    def _submitted(self) -> int:
        number = self._keyspaces.by_name().get("feedback")
        asked = [each[0] for each in (*self._group._members, *self._group._waiting)]
        return sum(each.badge == number for each in asked)

    def idle(self) -> float | None:
        self._looped = True
        if not self.collected and 0 < self._submitted() <= {PART}:
            return 0.01
        self.collected = self.collected or self._submitted() > {PART}
        return self._idle()

"""


def test_a_batch_that_fits_into_no_message_is_refused_and_the_others_go_in(tmp_path: Path) -> None:
    first, large, last = batch("first"), batch("large"), batch("last")
    huge = line(large).replace(b"large 0", b"x" * (LONGEST // 2))
    content = b"\n".join((line(first), huge, line(last)))
    with booted(tmp_path, text=IMAGE) as node, node.attach() as attached:
        pieces = [content[begin : begin + PIECE] for begin in range(0, len(content), PIECE)]
        file = attached.open("storage", Storage).put.now(pieces)
        done = attached.open("importer", Importer).bring_in.now(file)
        assert (done.taken, done.refused) == (2, 1)
        (left,) = done.left
        assert left.place == len(line(first)) + 1
        assert left.reason.startswith("expected a batch that is a message of ")
        assert held(attached.open("feedback", Feedback)) == said([first, last])


def collecting(folder: Path) -> str:
    """A store that commits nothing of feedback's before as many transactions as an import's step has, and one more, have
    come to it; `submitted` is how many there are by then."""
    assert store.__file__ is not None
    copy = folder / "state"
    shutil.copytree(Path(store.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "server.py").read_text()
    assert IDLE in text and STATISTICS in text
    text = text.replace(IDLE, COLLECTS + IDLE.replace("idle", "_idle"))
    text = text.replace(STATISTICS, STATISTICS + '            "submitted": self._submitted(),\n')
    (copy / "server.py").write_text(text)
    return str(copy)


def large(id: str) -> Batch:
    rating = Rating(rater="r", role="expert", trust=0.5, task=TASK, text=TEXT, score=0.5)
    return Batch(id, [rating] * TEXTS)


def test_a_rater_is_not_behind_an_import(tmp_path: Path) -> None:
    """All of an import's step is at the store when the rater comes, and what is too much for one group goes after."""
    text = RLHF.read_text().replace(
        "[server.state]\n", f'[server.state]\npackage = "{collecting(tmp_path)}"\n'
    )
    given = [large(f"import.{number}") for number in range(PART)]
    with booted(tmp_path, text=text, flags=("--degrade",)) as node, node.attach() as attached:
        file = put(attached.open("storage", Storage), given)
        feedback, state = attached.open("feedback", Feedback), attached.open("state", State)
        importing = attached.open("importer", Importer).bring_in.start(file)
        while state.statistics.now()["submitted"] < PART:
            pass
        rated = feedback.submit.now(batch("rating"))
        assert importing.result().taken == PART
        later = sum(each.revision > rated.revision for each in feedback.batches.now())
    assert later >= PART - BULK_MOST // (TEXTS * len(TEXT)) - 1 > 0
