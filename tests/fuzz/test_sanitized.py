"""Real processes on the sanitized core: hostile peers in short form; in long form all that `make sanitize` runs."""

from pathlib import Path

import pytest

from .sanitized import MEMORY, THREADS, Sanitizer, build, reports, run

SHORT = ("tests/adversary/test_lies.py", "tests/native/test_lost_rings.py")
CHOSEN = "wrong or caller or doorbell or rings or put_off"
WRONG = """
from atoll.native import ffi, lib

def test_an_entry_is_written_where_there_is_no_room_for_one():
    lib.atoll_entry_write(ffi.new("char[8]"), 0, 1, 1, 1, 1, 1, 1, 1, 1)
"""


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized"))


def clean(core: Path, folder: Path, sanitizer: Sanitizer, *chosen: str) -> None:
    """The tests pass on a core built for it, and it has nothing to say."""
    ended = run(core, ["-m", "not soak", *chosen], folder, sanitizer)
    found = reports(folder, sanitizer)
    said = "\n".join((*found, ended.stdout, ended.stderr))
    assert ended.returncode == 0, said
    assert not found, said


@pytest.mark.timeout(600)
def test_hostile_peers_trip_no_sanitizer(core: Path, tmp_path: Path) -> None:
    clean(core, tmp_path, MEMORY, "-k", CHOSEN, *SHORT)


def test_what_a_sanitizer_finds_is_reported(core: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text(WRONG)
    assert run(core, [str(wrong)], tmp_path).returncode != 0
    assert any("heap-buffer-overflow" in report for report in reports(tmp_path))


@pytest.mark.soak
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS], ids=["memory", "threads"])
def test_nothing_trips_a_sanitizer(sanitizer: Sanitizer, tmp_path: Path) -> None:
    clean(build(tmp_path, sanitizer), tmp_path, sanitizer, *sanitizer.tests)
