"""What the medium does to the store, in real nodes: syncs that fail, a disk that is full, a format of another version."""

from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from atoll.ipc.errors import Revoked
from atoll.ipc.system.state import Write
from atoll.servers.state.check import check_folder
from tests.kit.disk import fill, small_disk
from tests.kit.preloaded import preloaded

from .nodes import IMAGE as COUNTER
from .nodes import PACKAGES, booted, fill_store

IMAGE = """
[image]
name = "test"

[keyspace.rows]

[server.state]
level = "process"
needs = {}
restart = { first = 0.01, limit = 50 }
"""


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The faults to come, the next one last; the library that makes them is loaded into every process."""
    with preloaded(Path(__file__).with_name("failing_sync.c"), "FAULTS", tmp_path, monkeypatch) as file:
        yield file


@pytest.fixture
def faults(orders: Path) -> Callable[[str], None]:
    return lambda kinds: orders.write_text(kinds) and None


@pytest.mark.parametrize("kinds", ["s", "m", "l", "r", "lmsr"])
def test_nothing_is_acknowledged_that_a_failed_sync_may_have_lost(
    tmp_path: Path, faults: Callable[[str], None], kinds: str
) -> None:
    """The process ends with the group unanswered; the next one recovers, and each commit is there once, under its id."""
    with booted(tmp_path, text=IMAGE) as node, node.attach() as me:
        rows = me.keyspace("rows")
        before = rows.commit.now([Write(b"before", b"1")]).revision
        restarts = state_row(me).restarts
        faults(kinds)
        started = [
            rows.commit.start([Write(b"k%d" % number, b"v")], id=b"id %d" % number, reply=b"r%d" % number)
            for number in range(20)
        ]
        outcomes = [each.result() for each in started]
        assert state_row(me).restarts > restarts
        revisions = [outcome.revision for outcome in outcomes]
        assert len(set(revisions)) == 20 and min(revisions) > before
        for number, outcome in enumerate(outcomes):
            (version,) = rows.history.now(b"k%d" % number)
            assert version.revision == outcome.revision
            if outcome.repeated:
                assert outcome.reply == b"r%d" % number
        assert any("a commit to" in line.text for line in me.kernel.logs.now(0, "state", False))
        assert not check_folder(node.folder / "data" / "state").breaches


def test_writers_that_arrive_while_a_sync_runs_share_the_next(
    tmp_path: Path, orders: Path, faults: Callable[[str], None]
) -> None:
    with booted(tmp_path, text=IMAGE) as node, node.attach() as me:
        rows = me.keyspace("rows")
        before = rows.statistics.now()
        faults("h")
        first = rows.commit.start([Write(b"first", b"v")])
        while orders.read_text():
            pass
        later = [rows.commit.start([Write(b"%d" % number, b"v")]) for number in range(50)]
        faults("g")
        assert len({each.result().revision for each in (first, *later)}) == 51
        after = rows.statistics.now()
        kernels = after["committed"] - before["committed"] - 51
        # The one that was held, and the next, for which they are taken out of their ring in a few turns.
        assert after["groups"] - before["groups"] <= 4 + kernels


def state_row(me):  # type: ignore[no-untyped-def]
    return next(row for row in me.kernel.ps.now() if row.server == "state")


def test_a_full_disk_stops_neither_reads_nor_the_kernel(tmp_path: Path) -> None:
    text = COUNTER.format(level="process", packages=PACKAGES, counter="", more="[keyspace.ballast]")
    with small_disk(tmp_path / "node", "size=80m"):
        with booted(tmp_path, text=text) as node, node.attach() as me, node.attach() as other:
            rows, theirs = me.keyspace("ballast"), other.keyspace("ballast")
            (node.folder / "spare").write_bytes(bytes(1 << 20))
            count, told = fill_store(rows)
            assert "nothing was written" in told
            item = rows.get.now(b"%06d" % (count - 1))
            assert item is not None and rows.get.now(b"%06d" % count) is None
            fill(node.folder / "filler")
            held = [
                row for row in me.kernel.caps.now("state") if row.holder == f"@{other.welcome.attachment}"
            ]
            me.kernel.revoke.now(held[0].number)
            with pytest.raises(Revoked):
                theirs.get.now(b"000000")
            assert me.kernel.freeze.now("counter").state == "frozen"
            assert me.kernel.thaw.now("counter").state == "serving"
            assert me.kernel.stop.now("teller").state == "stopped"
        with pytest.raises(AssertionError, match="is full: free a MiB or more there, then boot again"):
            node.boot()
        (node.folder / "spare").unlink()
        with booted(tmp_path, text=text) as node, node.attach() as me:
            assert next(row.state for row in me.kernel.ps.now() if row.server == "teller") == "stopped"
            rows = me.keyspace("ballast")
            assert rows.get.now(b"%06d" % (count - 1)) is not None
            assert not check_folder(node.folder / "data" / "state").breaches


@pytest.mark.parametrize(
    ("format_", "told"),
    [(99, "the store has format 99, this version reads up to 4"), (0, "no way leads from 0 to 1")],
)
def test_a_store_of_another_format_is_refused_at_boot_with_a_sentence(
    tmp_path: Path, format_: int, told: str
) -> None:
    with booted(tmp_path, text=IMAGE.replace("limit = 50", "limit = 1")) as node:
        pass
    for log in (node.folder / "data" / "state").glob("log.*"):
        log.unlink()  # what it says of the database would not fit any more, and a store that was closed needs none
    with (
        lmdb.open(str(node.folder / "data" / "state"), map_size=1 << 30, max_dbs=8) as environment,
        environment.begin(write=True) as transaction,
    ):
        meta = environment.open_db(b"meta", txn=transaction, create=False)
        transaction.put(b"format", format_.to_bytes(4, "big"), db=meta)
    with pytest.raises(AssertionError, match="it did not boot") as refused:
        node.boot()
    assert told in str(refused.value)
    assert node.processes() == []
