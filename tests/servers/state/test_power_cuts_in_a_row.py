"""The power fails, the store goes on, and the power fails again, several times, with what else a writer may meet in between:
commits that LMDB refuses after they were logged, commits that only expect, values that go beyond a segment."""

import random
from pathlib import Path

import pytest

from .power import Disk
from .test_crash import acknowledged
from .test_power_cut import WRITER, after, folder, lay, notes, orders

__all__ = ["folder", "orders"]  # fixtures


def changed(program: str, *changes: tuple[str, str]) -> str:
    for before, later in changes:
        assert program.count(before) == 1, before
        program = program.replace(before, later)
    return program


TRIED = changed(
    WRITER,
    (
        "chance = random.Random(5)",
        """
import lmdb
from atoll.ipc.system.state import Expect

chance = random.Random(int(sys.argv[4]))

class Refusing:
    def __init__(self, transaction):
        self.transaction = transaction

    def __enter__(self):
        return self.transaction.__enter__()

    def __exit__(self, *raised):
        if raised[0] is None and chance.random() < 0.05:
            self.transaction.abort()
            raise lmdb.DiskError("mdb_txn_commit: No space left on device")
        return self.transaction.__exit__(*raised)

class Environment:
    def __init__(self, real):
        self.real = real

    def begin(self, **words):
        transaction = self.real.begin(**words)
        return Refusing(transaction) if words.get("write") else transaction

    def __getattr__(self, name):
        return getattr(self.real, name)

engine._environment = Environment(engine._environment)
""",
    ),
    ("for member in range(chance.choice([1, 1, 4])):", "for member in range(1):"),
    ("chance.choice([1, 300])", "chance.choice([1, 1, 1, 300, 300, 60000])"),
    (
        """    group.flush()
    assert all""",
        """    if chance.random() < 0.1:
        group.flush()
        only = Deferred()
        only.react(lambda outcome: None, lambda error: None)
        group.admit(Transaction(0, [], [Expect(prefix + b"nobody", 0)]), only)
    group.flush()
    outcomes = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    if not outcomes:
        return
    assert all""",
    ),
)


def in_a_row(orders: Path, folder: Path, fresh: Path, seed: int, times: int) -> None:
    chance = random.Random(seed)
    before: dict[str, bytes] = {}
    last = 0
    for cycle in range(times):
        store = lay(folder, before) if before else fresh
        count = str(chance.choice([2, 20, 60]))
        written = notes(orders, TRIED, str(store), count, "", str(seed * 100 + cycle))
        first = 0 if before else next(at for at, note in enumerate(written) if note.kind == "s")
        found: list[tuple[dict[str, bytes], int]] = []
        disk, passed = Disk(before), 0
        for moment in sorted(chance.randrange(first, len(written) + 1) for _ in range(6)):
            for note in written[passed:moment]:
                disk.take(note)
            passed = moment
            image = disk.image(chance)
            now = max(last, acknowledged(disk.said)) if disk.said else last
            after(folder, image, now)
            found.append((image, now))
        before, last = chance.choice(found)


def test_the_power_fails_again_and_again(orders: Path, folder: Path, tmp_path: Path) -> None:
    in_a_row(orders, folder, tmp_path / "store", 0, 4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 20))
def test_the_power_fails_again_and_again_at_length(
    orders: Path, folder: Path, tmp_path: Path, seed: int
) -> None:
    in_a_row(orders, folder, tmp_path / "store", seed, 8)
