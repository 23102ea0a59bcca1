"""A swap of the store that goes wrong: its rows have nowhere to go but the journal, and nobody waits for the store under
the lock that its restart needs."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import AtollError
from atoll.ipc.system.kernel import ProcessRow, StartFailed, Swap
from atoll.ipc.system.state import Write
from atoll.servers import state as package

from .nodes import booted
from .test_store_over_restarts import PLAIN

QUICK = PLAIN.replace("needs = {}", "needs = {}\nrestart = { first = 0, most = 0 }")
WATCHING = "        while True:\n            await trio.sleep(self.config.compact_every)\n"


def row_of_store(me: Attached) -> ProcessRow:
    return next(row for row in me.kernel.ps.now() if row.server == "state")


def stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def version_that(does: str, folder: Path) -> str:
    """A version of the store that does something as soon as it is ready."""
    assert package.__file__ is not None
    copy = folder / "next" / "state"
    shutil.copytree(Path(package.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    server = copy / "server.py"
    text = server.read_text()
    assert WATCHING in text
    server.write_text(text.replace(WATCHING, f"        import os\n\n        {does}\n{WATCHING}"))
    return str(copy)


@contextmanager
def swapped(me: Attached, version: str) -> Iterator[list[AtollError]]:
    """A swap of the store that goes on meanwhile, and how it was refused."""
    refused: list[AtollError] = []

    def swap() -> None:
        try:
            me.kernel.swap.now(Swap(server="state", package=version))
        except AtollError as error:
            refused.append(error)

    swapping = threading.Thread(target=swap)
    swapping.start()
    yield refused
    swapping.join()


def test_a_store_that_dies_when_it_has_just_been_taken_back_is_restarted(tmp_path: Path) -> None:
    """The new version ends in its first turn and has halted the old one, which goes on as if nothing had been and then
    dies before it has written anything."""
    with booted(tmp_path, text=QUICK) as node, node.attach() as me:
        rows = me.keyspace("rows")
        written = rows.commit.now([Write(b"k", b"v")]).revision
        old = row_of_store(me)
        ends = version_that(f"os.kill({old.pid}, {int(signal.SIGSTOP)}); os._exit(9)", tmp_path)
        with swapped(me, ends) as refused:
            while not stands(old.pid) or row_of_store(me).state != "serving":
                pass
            os.kill(old.pid, signal.SIGKILL)
        assert [type(error) for error in refused] == [StartFailed]
        found = rows.get.now(b"k")
        assert found is not None and found.revision == written
        assert row_of_store(me).version == old.version
        node.kill()
        node.boot()
        with node.attach() as again:
            assert row_of_store(again).version == old.version
