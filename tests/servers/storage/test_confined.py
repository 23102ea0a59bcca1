"""Storage on a real node, at the level that its image gives it."""

from pathlib import Path

import pytest

from atoll import images
from atoll.servers.storage.interface import Storage
from tests.microkernel.nodes import booted

RLHF = Path(images.__file__).parent / "rlhf.toml"


def test_it_asks_the_host_for_nothing_that_it_is_not_given(tmp_path: Path) -> None:
    """What is refused at each start hides, among the rows of what was refused, what somebody tries."""
    with booted(tmp_path, text=RLHF.read_text(), flags=("--degrade",)) as node, node.attach() as attached:
        (storage,) = (row for row in attached.kernel.ps.now() if row.server == "storage")
        if storage.level == "process":
            pytest.skip("at level process, all that is possible here, nothing is refused")
        blobs = attached.open("storage", Storage)
        content = b"x" * 400_000
        kept = blobs.put.now([content])
        assert b"".join(piece.data for piece in blobs.get.now(kept.hash)) == content
        assert attached.kernel.refused.now() == []
