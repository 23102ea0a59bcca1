"""The time of day is set while a node runs: nobody notices, no term grows, and times of commits never fall."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.system.state import Write
from atoll.servers.state.check import check_folder
from tests.kit.preloaded import preloaded

from .nodes import IMAGE, PACKAGES, booted, interface

Counter = interface("counter", "Counter")
HOUR = 3600
JUMPS = (-HOUR, +HOUR, -24 * HOUR, 0)


@pytest.fixture
def skew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the time of day of all that is started from then on, and runs: seconds beside the host's."""
    with preloaded(Path(__file__).with_name("skewed_clock.c"), "SKEW", tmp_path, monkeypatch) as orders:
        yield lambda seconds: orders.write_text(str(seconds)) and None


def serving(attached: Attached) -> dict[str, tuple[int, str, int]]:
    return {row.server: (row.pid, row.state, row.restarts) for row in attached.kernel.ps.now()}


def test_calls_streams_and_servers_go_on_whatever_the_clock_is_set_to(
    tmp_path: Path, skew: Callable[[int], None]
) -> None:
    with booted(tmp_path) as node, node.attach() as attached:
        counter = attached.open("counter", Counter)
        before = serving(attached)
        numbers = []
        with counter.with_(deadline=60.0).ticks.now(0) as ticks:
            for number, jump in enumerate(JUMPS):
                skew(jump)
                assert counter.with_(deadline=30.0).add.now("x") == number + 1
                numbers += [next(ticks).number for _ in range(5)]
        assert numbers == list(range(1, 5 * len(JUMPS) + 1))
        assert serving(attached) == before
        attached.kernel.restart.now("counter")
        assert counter.get.now("x") == len(JUMPS)


def test_a_term_does_not_grow_when_the_clock_is_set_back(tmp_path: Path, skew: Callable[[int], None]) -> None:
    with booted(tmp_path) as node, node.attach() as attached:
        opened = attached.kernel.open.now("counter", "Counter")
        granted = attached.kernel.derive.now(opened.number, ["read"], 1.0)
        skew(-HOUR)
        later = attached.kernel.derive.now(opened.number, ["read"], 1.0)
        attached.kernel.restart.now("counter")  # its table is written anew
        while {granted, later} & {row.number for row in attached.kernel.caps.now("counter")}:
            pass


def test_times_of_commits_never_fall_and_the_past_reads_as_the_rows_say(
    tmp_path: Path, skew: Callable[[int], None]
) -> None:
    text = IMAGE.format(level="process", packages=PACKAGES, counter="", more="[keyspace.rows]")
    with booted(tmp_path, text=text) as node:
        with node.attach() as attached:
            rows = attached.keyspace("rows")
            first = rows.commit.now([Write(b"k", b"first")])
            skew(-HOUR)
            second = rows.commit.now([Write(b"k", b"second")])
            assert second.revision > first.revision
            newer, older = rows.history.now(b"k")
            if newer.revision < older.revision:
                newer, older = older, newer
            assert newer.time >= older.time
            assert rows.revision_at.now(older.time / 1e9 - 1) < first.revision
            assert rows.revision_at.now(newer.time / 1e9 + 1) >= second.revision
            assert rows.get.now(b"k").value == b"second"
        node.kill()
        skew(-2 * HOUR)
        node.boot()
        with node.attach() as attached:
            rows = attached.keyspace("rows")
            third = rows.commit.now([Write(b"k", b"third")])
            times = [
                version.time for version in sorted(rows.history.now(b"k"), key=lambda each: each.revision)
            ]
            assert third.revision > second.revision and times == sorted(times)
        assert node.stop() == 0
        assert not check_folder(node.folder / "data" / "state").breaches
