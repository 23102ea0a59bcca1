"""The disk under a node is full: what the kernel must do it does, and the node goes on when there is room again."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.ipc.system.records import EventRow
from atoll.microkernel.changes import Batch
from atoll.microkernel.journal import create, open_
from tests.kit.disk import fill, small_disk

from .nodes import RealNode, booted, interface, wait_for_end

Counter = interface("counter", "Counter")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=96m,mode=755") as folder:
        yield folder


def serving(node: RealNode, server: str) -> int:
    """Its process, once there is one that serves."""
    while True:
        with node.attach() as attached:
            row = next(row for row in attached.kernel.ps.now() if row.server == server)
        if row.state == "serving" and row.pid:
            return row.pid


def test_the_journal_has_room_of_its_own(disk: Path) -> None:
    """For more starts of the store than any crash loop has."""
    journal = create(disk / "journal", "node", 7)
    fill(disk / "junk")
    for number in range(200):
        row = EventRow(boot=1, sequence=number, time=number, kind="test", who="me", sentence="it was")
        changes = Batch(b"%d" % number, note="test").put(row).changes()
        journal.wait(changes)
        journal.settle(changes.id)
    with pytest.raises(OSError, match="No space"):
        journal.compact()
    assert journal.boot(10) == 1
    journal.close()
    again = open_(disk / "journal")
    assert (again.epoch, again.waiting, again.cut) == (1, {}, 0)
    again.close()
    assert sorted(path.name for path in disk.iterdir()) == ["journal", "junk"]


def test_the_store_is_started_again_and_power_is_taken_back_on_a_full_disk(disk: Path) -> None:
    with booted(disk) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        assert counter.add.now("x", 5) == 5
        root = next(row for row in attached.kernel.caps.now("counter") if row.parent == 0)
        granted = attached.kernel.grant.now(root.number, "teller", ["read"])
        junk = disk / "junk"
        fill(junk)
        for _ in range(3):
            pid = serving(node, "state")
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            fill(junk)
        serving(node, "state")
        assert counter.get.now("x") == 5
        assert attached.kernel.revoke.now(granted) == 1
        assert attached.kernel.stop.now("teller").state == "stopped"
        junk.unlink()
        assert counter.add.now("x") == 6
        attached.kernel.restart.now("teller")
        node.kill()
        node.boot()
        with node.attach() as again:
            assert again.open("counter", Counter).get.now("x") == 6
            assert granted not in {row.number for row in again.kernel.caps.now()}
