"""A writer is killed at random and at each point around the sync: what was acknowledged is there, what was
not is there whole or not at all, and the store is whole."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.servers.state import layout
from atoll.servers.state.lmdb_engine import LmdbEngine

WRITER = """
import os, signal, sys
from atoll.ipc.deferred import Deferred
from atoll.ipc.system.state import Committed
from atoll.servers.state import layout
from atoll.servers.state.engine import Table
from atoll.servers.state.group import Group, Transaction
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.ownership import Ownership, settle_format

folder, point, fatal, boot, deadly = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])

class Dying(LmdbEngine):
    groups = 0

    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        append = self._log.append
        def appended(transaction, batch):
            append(transaction, batch)
            self.die_at("after the log")
        self._log.append = appended

    def die_at(self, here):
        if here == point and self.groups == fatal:
            os.kill(os.getpid(), deadly)

    def commit(self, batch, *, reserved=False):
        self.groups += 1
        self.die_at("before the batch")
        super().commit(batch, reserved=reserved)
        self.die_at("after the sync")

    def _apply(self, transaction, batch):
        super()._apply(transaction, batch)
        self.die_at("before the sync")

engine = Dying(folder, limit=256 << 20, map_size=1 << 30)
settle_format(engine)
history = History(engine, str)
group = Group(history, Ownership(engine, boot), lambda written: engine.die_at("before the answer"))
prefix = layout.prefix(0)
while True:
    acknowledged = []
    for member in range(5):
        number = history.head() + 1 + member
        value = b"%d " % number * (1 if member % 2 else 300)
        writes = [(prefix + b"a%d" % (number % 7), value), (prefix + b"b", value)]
        done = Deferred()
        done.react(acknowledged.append, acknowledged.append)
        group.admit(Transaction(0, writes, [], id=prefix + b"%d" % number), done)
    group.flush()
    for outcome in acknowledged:
        assert isinstance(outcome, Committed)
        os.write(1, b"%d\\n" % outcome.revision)
"""


def run(
    folder: Path, point: str, group: int, boot: int = 1, deadly: int = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", WRITER, str(folder), point, str(group), str(boot), str(int(deadly))]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def acknowledged(output: bytes) -> int:
    """The last revision that was acknowledged; a line that death cut short does not count."""
    lines = output.split(b"\n")[:-1]
    return int(lines[-1]) if lines else 0


def holds(folder: Path, last: int) -> int:
    """Asserts that every revision up to `last` is there and every revision is whole; gives the head."""
    engine = LmdbEngine(folder, read_only=True)
    try:
        with engine.snapshot() as snapshot:
            head = snapshot.bounds()[1]
            assert head >= last
            for revision, raw in snapshot.feed(0):
                values = set()
                for key in layout.entry_of(raw).keys:
                    row = layout.versioned(key, revision)
                    stored = snapshot.get(1, row)  # type: ignore[arg-type]
                    assert stored is not None
                    values.add(layout.value_of(snapshot, row, stored))
                assert len(values) == 1
                assert values.pop().split()[0] == b"%d" % revision  # type: ignore[union-attr]
            return head
    finally:
        engine.close()


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize(
    "point", ["before the batch", "before the sync", "after the log", "after the sync", "before the answer"]
)
def test_killed_around_the_sync(tmp_path: Path, whole: Callable[[Path], int], point: str, group: int) -> None:
    # The batch that stamps the format is the first.
    child = run(tmp_path / "store", point, group + 1)
    output, _ = child.communicate()
    assert child.returncode == -signal.SIGKILL
    last = acknowledged(output)
    assert last == (group - 1) * 5
    head = holds(tmp_path / "store", last)
    assert head == last + (5 if point in ("after the log", "after the sync", "before the answer") else 0)
    assert whole(tmp_path / "store") == head


def test_killed_at_random(tmp_path: Path, whole: Callable[[Path], int]) -> None:
    """The same store, killed again and again: nothing acknowledged in any life is ever lost."""
    folder, before = tmp_path / "store", 0
    chance = random.Random(1)
    for _ in range(6):
        child = run(folder, "", 0)
        assert child.stdout is not None
        output = b""
        wanted = chance.randrange(1, 4000)
        while len(output) < wanted:
            output += os.read(child.stdout.fileno(), 512)
        child.kill()
        output += child.communicate()[0]
        last = acknowledged(output)
        assert last > before
        before = holds(folder, last)
        assert whole(folder) == before


@pytest.mark.parametrize("point", ["before the batch", "before the answer"])
def test_a_survivor_of_an_old_boot_commits_nothing(
    tmp_path: Path, whole: Callable[[Path], int], point: str
) -> None:
    """It was stopped when the next boot began to write, and goes on afterwards; what it was in the midst of is refused."""
    folder = tmp_path / "store"
    survivor = run(folder, point, 4, boot=1, deadly=signal.SIGSTOP)
    os.waitid(os.P_PID, survivor.pid, os.WSTOPPED)
    heir = run(folder, "after the sync", 2, boot=2)
    heirs, _ = heir.communicate()
    head = holds(folder, acknowledged(heirs))
    survivor.send_signal(signal.SIGCONT)
    said, why = survivor.communicate()
    assert survivor.returncode == 1
    assert b"the store is owned by a process of boot 2, not by this one of boot 1" in why
    told = 10 + 5 * (point == "before the answer")  # what was durable before the heir came
    assert acknowledged(said) == told
    assert head == told + 10
    assert holds(folder, told) == head == whole(folder)


def test_who_reads_keeps_what_the_log_alone_has_from_coming_back(
    tmp_path: Path, whole: Callable[[Path], int]
) -> None:
    """Killed when the log had a group and the database not yet. A reader lives on, which has shown the store without it: so
    it stays, after the next writer, and after a failure of the power behind that one."""
    folder = tmp_path / "store"
    run(folder, "after the sync", 3).communicate()
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    before = int(reader.stdout.readline())
    heir = run(folder, "after the log", 2, boot=2)
    assert acknowledged(heir.communicate()[0]) == before + 5
    survivors = subprocess.run([sys.executable, "-c", OPENER, str(folder)], check=True, capture_output=True)
    assert int(survivors.stdout) == before + 5
    reader.communicate(b"\n")
    assert holds(folder, before) == before + 5 == whole(folder)


def test_a_checkpoint_that_fails_ends_the_process(tmp_path: Path, whole: Callable[[Path], int]) -> None:
    """The file could not be brought to the disk: nothing more is acknowledged, and what was is in the log."""
    folder = tmp_path / "store"
    words = [sys.executable, "-c", FAILING + WRITER, str(folder), "", "0", "1", "0"]
    died = subprocess.run(words, capture_output=True, check=False)
    assert died.returncode == 1
    assert b"a checkpoint could not be written to the disk" in died.stderr
    last = acknowledged(died.stdout)
    assert last >= 10
    assert holds(folder, last) == whole(folder)


FAILING = """
import os
from atoll.servers.state import checkpoint

checkpoint.OFTEN = checkpoint.SELDOM = 1_000_000
real = checkpoint._Writing._run
unsynced, _ = os.pipe()
checkpoint._Writing._run = lambda self, descriptor: real(self, unsynced)
"""
READER = """
import sys
from atoll.servers.state.lmdb_engine import LmdbEngine

engine = LmdbEngine(sys.argv[1], read_only=True)
with engine.snapshot() as snapshot:
    print(snapshot.bounds()[1], flush=True)
sys.stdin.readline()
"""
OPENER = """
import os, sys
from atoll.servers.state.lmdb_engine import LmdbEngine

engine = LmdbEngine(sys.argv[1], map_size=1 << 30, limit=256 << 20)
with engine.snapshot() as snapshot:
    os.write(1, b"%d" % snapshot.bounds()[1])
os._exit(0)
"""
