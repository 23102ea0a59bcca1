"""Real processes on the sanitized core: hostile peers in short form; in long form all that `make sanitize` runs."""

from pathlib import Path
from typing import NamedTuple

import pytest

from .sanitized import MEMORY, THREADS, Sanitizer, build, reports, run

SHORT = ("tests/adversary/test_lies.py", "tests/native/test_lost_rings.py")
CHOSEN = "wrong or caller or doorbell or rings or put_off"


class Planted(NamedTuple):
    """A wrong use of the core, as a test, and the words of the report that tells it."""

    test: str
    told: str


WRONG = {
    "memory": Planted(
        """
from atoll.native import ffi, lib

def test_an_entry_is_written_where_there_is_no_room_for_one():
    lib.atoll_entry_write(ffi.new("char[8]"), 0, 1, 1, 1, 1, 1, 1, 1, 1)
""",
        "heap-buffer-overflow",
    ),
    "threads": Planted(
        """
from threading import Thread
from atoll.native import ffi, lib

def test_two_threads_write_where_nothing_orders_them():
    memory = ffi.new("char[]", 1 << 20)
    def write():
        for _ in range(100):
            lib.atoll_zero(memory, len(memory))
    threads = [Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
""",
        "data race",
    ),
}


class Built(NamedTuple):
    core: Path
    sanitizer: Sanitizer
    planted: Planted


@pytest.fixture(scope="module", params=["memory", "threads"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    sanitizer = {"memory": MEMORY, "threads": THREADS}[request.param]
    return Built(build(tmp_path_factory.mktemp("sanitized"), sanitizer), sanitizer, WRONG[request.param])


def clean(core: Path, folder: Path, sanitizer: Sanitizer, *chosen: str) -> None:
    """The tests pass on a core built for it, and it has nothing to say."""
    ended = run(core, ["-m", "not soak", *chosen], folder, sanitizer)
    found = reports(folder, sanitizer)
    said = "\n".join((*found, ended.stdout, ended.stderr))
    assert ended.returncode == 0, said
    assert not found, said


@pytest.mark.timeout(600)
def test_hostile_peers_trip_no_sanitizer(built: Built, tmp_path: Path) -> None:
    clean(built.core, tmp_path, built.sanitizer, "-k", CHOSEN, *SHORT)


def test_what_a_sanitizer_finds_is_reported(built: Built, tmp_path: Path) -> None:
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text(built.planted.test)
    ended = run(built.core, [str(wrong)], tmp_path, built.sanitizer)
    assert (ended.returncode != 0) is (built.sanitizer is MEMORY), "after a race the run goes on"
    assert any(built.planted.told in report for report in reports(tmp_path, built.sanitizer)), ended.stdout


@pytest.mark.soak
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS], ids=["memory", "threads"])
def test_nothing_trips_a_sanitizer(sanitizer: Sanitizer, tmp_path: Path) -> None:
    clean(build(tmp_path, sanitizer), tmp_path, sanitizer, *sanitizer.tests)
