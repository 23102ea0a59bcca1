"""A real full file system, a process that may not write a larger file, a full map, a file system that is read-only: clear
errors, nothing half-written, reads go on."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.ipc.system.state import Committed, StoreFull
from atoll.servers.state.check import check_folder
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.opening import NotWritable, Settings, open_engine
from tests.kit.disk import small_disk

from .history_kit import Kit, key

FILLER = """
import resource, signal, sys
from atoll.ipc.deferred import Deferred
from atoll.ipc.system.state import Committed, StoreFull
from atoll.servers.state import layout
from atoll.servers.state.group import Group, Transaction
from atoll.servers.state.history import History
from atoll.servers.state.lmdb_engine import LmdbEngine
from atoll.servers.state.ownership import Ownership, settle_format

folder, file_limit = sys.argv[1], int(sys.argv[2])
if file_limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
engine = LmdbEngine(folder, reserve=4 << 20, map_size=1 << 30)
settle_format(engine)
history = History(engine, str)
group = Group(history, Ownership(engine, 1), lambda written: None)
prefix = layout.prefix(0)

def write(name, size, reserved=False):
    outcome = []
    done = Deferred()
    done.react(outcome.append, outcome.append)
    group.admit(Transaction(0, [(prefix + name, bytes(size))], [], reserved=reserved), done)
    group.flush()
    return outcome[0]

count = 0
while isinstance(outcome := write(b"%06d" % count, 100_000), Committed):
    count += 1
assert isinstance(outcome, StoreFull), outcome
print(outcome)
assert history.head() == count
assert isinstance(write(b"a revocation", 1000, reserved=True), Committed)
kernel = 0
while isinstance(outcome := write(b"kernel %06d" % kernel, 100_000, reserved=True), Committed):
    kernel += 1
assert isinstance(outcome, StoreFull), outcome
assert kernel >= 10, kernel
assert history.head() == count + 1 + kernel
assert len(history.range(prefix, layout.prefix(1), 100_000).items) > 0
print(count, engine.statistics())
"""


def fill(folder: Path, file_limit: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(folder), str(file_limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=48m") as folder:
        yield folder


def test_a_full_disk(disk: Path, whole: Callable[[Path], int]) -> None:
    assert "the disk is full" in fill(disk / "store")
    assert whole(disk / "store") > 100


def test_a_file_size_limit(tmp_path: Path, whole: Callable[[Path], int]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if hard != resource.RLIM_INFINITY and hard < 48 << 20:
        pytest.skip(f"files of 48 MiB are needed, and this process may write {hard} bytes")
    assert "the disk is full" in fill(tmp_path / "store", 48 << 20)
    assert whole(tmp_path / "store") > 100


def test_a_full_map(tmp_path: Path, whole: Callable[[Path], int]) -> None:
    """The limit lies below the map; here the map is met first. What was acknowledged is there; a larger map takes more."""
    folder = tmp_path / "store"

    def opened() -> LmdbEngine:
        engine = LmdbEngine(folder, map_size=80 << 20, reserve=0)
        engine._limit = 1 << 40
        return engine

    kit = Kit(opened)
    for count in range(10_000):
        (outcome,) = written(kit, count)
        if not isinstance(outcome, Committed):
            break
    assert isinstance(outcome, StoreFull) and "the map is full" in str(outcome)
    head = kit.history.head()
    assert head == kit.base + count > 100
    for number in (0, count - 1):
        assert kit.history.get(key(f"{number:06d}")) is not None
    assert kit.history.get(key(f"{count:06d}")) is None
    kit.engine.close()
    assert whole(folder) == head
    larger = Kit(lambda: LmdbEngine(folder, map_size=1 << 30, limit=512 << 20, reserve=0))
    assert isinstance(written(larger, count)[0], Committed)
    larger.engine.close()
    assert whole(folder) == head + 1


def written(kit: Kit, number: int) -> list[object]:
    outcome = kit.admit([(key(f"{number:06d}"), bytes(100_000))])
    kit.group.flush()
    return [*outcome]


def test_a_file_system_that_is_read_only(tmp_path: Path) -> None:
    """Nobody writes, and who asked is told what to do; the check reads what was closed."""
    with small_disk(tmp_path / "disk", "size=96m") as disk:
        folder = disk / "store"
        kit = Kit(lambda: LmdbEngine(folder, map_size=1 << 30, limit=32 << 20, reserve=0))
        kit.commit({"a": "1"})
        kit.engine.close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        settings = Settings(folder=str(folder), map_size=1 << 30, limit=32 << 20, reserve=0)
        with pytest.raises(
            NotWritable, match=r"cannot be written \(Read-only file system\): mount it for writing"
        ):
            open_engine(settings)
        assert check_folder(folder).breaches == []
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        engine, _ = open_engine(settings)
        engine.close()
