"""An import on a real node, whose channels have a size."""

from pathlib import Path

from atoll.servers.feedback.interface import Feedback
from atoll.servers.importer.interface import Importer
from atoll.servers.importer.server import LONGEST
from atoll.servers.storage.interface import Storage
from tests.microkernel.nodes import booted

from ..feedback.test_job import IMAGE
from .files import batch, held, line, said

PIECE = 512 * 1024


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
