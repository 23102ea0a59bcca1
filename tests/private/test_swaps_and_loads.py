"""What is private stays so while a server is being replaced by a version for which nothing is, and is not after all."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest, Sealed
from atoll.ipc.system.kernel import Binding, KeyspaceBinding, Load, ServerBinding, StartFailed, Swap
from atoll.microkernel.versions import hash_of
from tests.microkernel.nodes import booted

from .nodes import PACKAGES, diary, image
from .packages.diary.interface import Entry

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


def test_a_version_that_the_policy_does_not_name_is_given_no_keys(tmp_path: Path) -> None:
    """Nor has it those that its forerunner had. Who comes back to the other version has all."""
    named = hash_of(PACKAGES / "diary")[:16]
    policy = f'policy = {{ diary = {{ versions = ["{named}"] }} }}'
    with booted(tmp_path, text=image(level="process", config=policy)) as node, node.attach() as attached:
        words, kernel = diary(attached), attached.kernel
        words.write.now("monday", "ann", "rain")
        edited = tmp_path / "next" / "diary"
        shutil.copytree(PACKAGES / "diary", edited, ignore=shutil.ignore_patterns("__pycache__"))
        with open(edited / "server.py", "a") as server:
            server.write("# and no more\n")
        done = kernel.swap.now(Swap(server="diary", package=str(edited)))
        assert done.old.startswith(named) and done.new == hash_of(edited)
        why = f"the policy wants version {named}, and it is version {done.new}"
        with pytest.raises(Sealed, match=why):
            words.read.now("monday")
        with pytest.raises(Sealed, match=why):
            words.write.now("tuesday", "bob", "snow")
        assert words.raw.now("monday")
        kernel.swap.now(Swap(server="diary", version=done.old))
        assert words.read.now("monday") == Entry("ann", "rain")
        assert words.read.now("tuesday") is None
