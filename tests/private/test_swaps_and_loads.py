"""What is private stays so while a server is being replaced by a version for which nothing is, and is not after all."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest
from atoll.ipc.system.kernel import Binding, KeyspaceBinding, Load, ServerBinding, StartFailed, Swap
from tests.microkernel.nodes import booted

from .nodes import PACKAGES, image

STARTS = "it starts, and does not come up"


def plain(folder: Path) -> str:
    """A version of the diary that keeps its words in the clear, and never comes up."""
    copy = folder / "next" / "diary"
    shutil.copytree(PACKAGES / "diary", copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "server.py").read_text()
    text = text.replace("import Deferred, Private, Serves", "import Deferred, Keyspace, Serves")
    text = text.replace("words: Private[Entry]", "words: Keyspace[Entry]")
    hangs = f'    async def start(self):\n        print("{STARTS}", flush=True)\n        await trio.sleep_forever()\n\n'
    text = text.replace("    def hand_over", hangs + "    def hand_over").replace(
        "from atoll", "import trio\nfrom atoll", 1
    )
    (copy / "server.py").write_text(text)
    return str(copy)


def test_a_swap_that_is_refused_lets_nobody_in_who_records(tmp_path: Path) -> None:
    with booted(tmp_path, text=image(level="process")) as node, node.attach() as attached:
        kernel = attached.kernel
        package = str(PACKAGES / "diary")
        kernel.load.now(Load(server="first", package=package))
        words: dict[str, Binding] = {
            "words": KeyspaceBinding(keyspace="first.words", rights=["read", "write"])
        }
        kernel.load.now(Load(server="notes", package=package, needs=words))
        swapping = kernel.swap.start(Swap(server="notes", package=plain(tmp_path)))
        new = next(line.pid for line in kernel.logs.now() if line.text == STARTS)
        needs: dict[str, Binding] = {"diary": ServerBinding(server="notes")}
        recorded = Load(server="front", package=str(PACKAGES / "front"), record=True, needs=needs)
        with pytest.raises(BadRequest, match="no record of a server that talks with one"):
            kernel.load.now(recorded)
        os.kill(new, signal.SIGKILL)
        with pytest.raises(StartFailed):
            swapping.result()
