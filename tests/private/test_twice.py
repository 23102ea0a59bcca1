"""One private keyspace that a server would have by two needs: a purge would reach what it holds by one of them alone."""

from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.kernel import Binding, KeyspaceBinding, Load
from tests.microkernel.nodes import booted

from .nodes import PACKAGES, image

NAMED = "one need of a server for a private keyspace, got another one beside 'words': diary"


def test_a_private_keyspace_is_one_need_of_a_server(tmp_path: Path) -> None:
    """Whoever had it twice was told that all had let go of a key, and read by the other need what had been purged."""
    with booted(tmp_path, text=image(level="process")) as node, node.attach() as attached:
        bound: dict[str, Binding] = {
            need: KeyspaceBinding(keyspace="diary", rights=["read", "write"]) for need in ("words", "again")
        }
        with pytest.raises(BadRequest, match=NAMED):
            attached.kernel.load.now(Load(server="twice", package=str(PACKAGES / "twice"), needs=bound))
