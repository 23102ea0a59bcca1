"""The writer is killed around the sync of each step of a compaction: the store is whole, nothing that was promised is
lost, and the next process brings the pass to the end that it would have had.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.ipc.system.state import Compacted, Retention, State, Write
from atoll.servers.state.engine import Batch, Engine
from atoll.servers.state.lmdb_engine import LmdbEngine

from .kept import Kept

HOUSE = Path(__file__).parent.parent.parent.parent
POINTS = ("before the batch", "before the sync", "after the sync")
LIVE = """
import sys
from pathlib import Path
from tests.servers.state.test_compaction_crash import live

live(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
"""
COMMITS = 60
STEP = 8
PINNED = 20
"""The commit as of which the keyspace is pinned."""


class Dying(LmdbEngine):
    """Kills its process at a point of one of its commits, counted from when it is told to."""

    point = ""
    left = -1

    def commit(self, batch: Batch, *, reserved: bool = False) -> None:
        self.left -= 1
        self._die_at("before the batch")
        super().commit(batch, reserved=reserved)
        self._die_at("after the sync")

    def _apply(self, transaction: object, batch: Batch) -> None:
        super()._apply(transaction, batch)  # type: ignore[arg-type]
        self._die_at("before the sync")

    def _die_at(self, here: str) -> None:
        if here == self.point and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def opened(folder: Path) -> Kept:
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(Dying(folder, map_size=1 << 30, limit=256 << 20))
        return engines[-1]

    return Kept(make, STEP)


def writes(number: int) -> dict[bytes, bytes | None]:
    """What the commit of a number writes: a small value, a large one, and a key that comes and goes."""
    passing = b"passing %d" % (number // 2)
    return {
        b"small": b"%d" % number,
        b"large %d" % (number % 3): b"%d" % number * 100,
        passing: None if number % 2 else b"here",
    }


def contents(number: int) -> dict[bytes, bytes]:
    """How the keyspace stood after so many commits."""
    rows: dict[bytes, bytes | None] = {}
    for each in range(1, number + 1):
        rows |= writes(each)
    return {key: value for key, value in sorted(rows.items()) if value is not None}


def fill(kept: Kept) -> State:
    rows = kept.keyspace_state("rows", Retention(age=10.0))
    for number in range(1, COMMITS + 1):
        kept.hands.now += 1
        made = [Write(key, value) for key, value in writes(number).items()]
        done = rows.commit.start(made, id=b"%d" % number).result()
        if number == PINNED:
            rows.pin.start("pinned", done.revision).result()
    return rows


def live(folder: Path, point: str, step: int) -> None:
    """In the process that dies: fills the store, and compacts up to a point of one step."""
    kept = opened(folder)
    fill(kept)
    kept.hands.now += 100
    engine = kept.server._engine
    assert isinstance(engine, Dying)
    engine.point, engine.left = point, step
    kept.compact()


def revisions(kept: Kept) -> dict[int, int]:
    """By number of a commit, the revision: one was the keyspace's, one after the pinned commit the pin's."""
    return {number: 1 + number + (number > PINNED) for number in range(1, COMMITS + 1)}


def look(kept: Kept, rows: State) -> int:
    """Asserts that every moment reads as it was, or not at all; gives how many do."""
    readable = 0
    horizon = rows.horizon.start().result().revision
    for number, revision in revisions(kept).items():
        try:
            page = rows.range.start(b"", as_of=revision).result()
        except Compacted:
            assert revision < horizon
            assert number != PINNED
            continue
        assert {item.key: item.value for item in page.items} == contents(number)
        readable += 1
    return readable


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", [1, 7, 20])
def test_killed_in_a_step(tmp_path: Path, whole: Callable[[Path], int], point: str, step: int) -> None:
    folder = tmp_path / "store"
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            LIVE,
            str(folder),
            point,
            str(step),
        ],
        cwd=HOUSE,
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    whole(folder)
    kept = opened(folder)
    rows = kept.state(1)
    before = look(kept, rows)
    kept.hands.now += COMMITS + 100
    rows.commit.start([Write(b"small", b"after")]).result()
    kept.compact()
    assert look(kept, rows) == 2 <= before
    with kept.server._engine.snapshot() as snapshot:
        feed = [revision for revision, _ in snapshot.feed(0)]
    horizon = rows.horizon.start().result()
    kept.server._engine.close()
    whole(folder)
    straight = opened(tmp_path / "undisturbed")
    state = fill(straight)
    straight.hands.now += 100
    state.commit.start([Write(b"small", b"after")]).result()
    straight.compact()
    again = state.horizon.start().result()
    with straight.server._engine.snapshot() as snapshot:
        assert [revision for revision, _ in snapshot.feed(0)] == feed
    straight.server._engine.close()
    assert (horizon.revision, horizon.versions, horizon.ids) == (again.revision, again.versions, again.ids)
