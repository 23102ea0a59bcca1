"""Real processes on the sanitized core, in short form; `make sanitize` runs all of tests/native and tests/ipc on it."""

from pathlib import Path

import pytest

from .sanitized import build, run

SHORT = ("tests/adversary/test_lies.py", "tests/native/test_lost_rings.py")
CHOSEN = "wrong or caller or doorbell or rings or put_off"


@pytest.mark.timeout(600)
def test_hostile_peers_trip_no_sanitizer(tmp_path: Path) -> None:
    ended = run(build(tmp_path), ["-m", "not soak", "-k", CHOSEN, *SHORT])
    report = ended.stdout + ended.stderr
    assert ended.returncode == 0, report
    assert "Sanitizer" not in report, report
    assert "runtime error" not in report, report
