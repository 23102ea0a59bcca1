"""The extension built with sanitizers, and tests run on it.

    python -m tests.fuzz.sanitized                      # the long form: make sanitize
    python -m tests.fuzz.sanitized --threads tests/ipc  # under ThreadSanitizer, some of its tests

What AddressSanitizer finds ends the process that it is found in, a server's or the tests' own. ThreadSanitizer sees the
threads of one process (what two processes share, tests/native/threads.c has them share as threads), and the run goes on
after a report. Reports of all processes are gathered. A node that a test boots, and whatever else is started
anew, runs on the core as it is built for everybody.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .build import HERE_MACHINE

ROOT = Path(__file__).resolve().parents[2]
_COMPILE = "from native.build import builder; builder.compile(verbose=False)"
_RUN = """
import importlib, importlib.util, os, sys
for given in ("LD_PRELOAD", "PYTHONMALLOC"):
    del os.environ[given]
spec = importlib.util.spec_from_file_location("atoll.native._core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
sys.modules["atoll.native._core"] = core
if sys.argv[2]:
    importlib.import_module(sys.argv[2])
import pytest
sys.exit(pytest.main(sys.argv[3:]))
"""


class Sanitizer(NamedTuple):
    flags: tuple[str, ...]
    library: str
    """What the interpreter, which was not built with it, loads first."""
    environment: dict[str, str]
    tests: tuple[str, ...]
    """What is run on it if nothing else is said."""
    prefix: tuple[str, ...] = ()
    first: str = ""
    """The module that the process imports before the tests, if any."""


ATTACKS = ("tests/adversary", "--ignore=tests/adversary/test_culprits.py")
MEMORY = Sanitizer(
    HERE_MACHINE.sanitizers,
    "libasan.so",
    {
        # The interpreter itself leaks at its end.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=1:log_path={reports}/report",
        "UBSAN_OPTIONS": "print_stacktrace=1:log_path={reports}/report",
        "ATOLL_CFLAGS": " ".join(HERE_MACHINE.sanitizers),
    },
    ("tests/native", "tests/ipc", "tests/conformance/ipc", *ATTACKS),
    first="tests.fuzz.forking",
)
THREADS = Sanitizer(
    # What it does not know is a fence alone: whatever is ordered by one here is an atomic access anyhow.
    ("-fsanitize=thread", "-Wno-tsan"),
    "libtsan.so",
    {"TSAN_OPTIONS": "die_after_fork=0:report_signal_unsafe=0:exitcode=0:log_path={reports}/report"},
    (
        "tests/ipc",
        "tests/conformance/ipc",
        "tests/review",
        "--ignore=tests/review/test_accusations.py",
        *ATTACKS,
    ),
    ("setarch", "-R"),  # its shadow memory lies at addresses of its own
)


def build(folder: Path, sanitizer: Sanitizer = MEMORY) -> Path:
    """The sanitized extension, built in `folder` from a copy of the sources."""
    shutil.copytree(ROOT / "native", folder / "native", ignore=shutil.ignore_patterns("*.so", "_core.c"))
    flags = " ".join(sanitizer.flags)
    environment = os.environ | {"ATOLL_CFLAGS": f"{flags} -O1", "ATOLL_LDFLAGS": flags, "PYTHONPATH": "."}
    subprocess.run([sys.executable, "-c", _COMPILE], cwd=folder, env=environment, check=True)
    return next((folder / "atoll" / "native").glob("_core*.so"))


def run(
    core: Path, arguments: Sequence[str], told: Path, sanitizer: Sanitizer = MEMORY, *, shown: bool = False
) -> subprocess.CompletedProcess[str]:
    """pytest in a process that has the sanitized core in place of the usual one. Reports go to the folder `told`; `shown`:
    what the tests say is told as it comes."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    library = subprocess.check_output([compiler, f"-print-file-name={sanitizer.library}"], text=True).strip()
    environment = os.environ | {
        "LD_PRELOAD": library,
        "PYTHONMALLOC": "malloc",
        **{name: value.format(reports=told) for name, value in sanitizer.environment.items()},
    }
    words = [
        *sanitizer.prefix,
        sys.executable,
        "-c",
        _RUN,
        str(core),
        sanitizer.first,
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout",
        "300",
        *arguments,
    ]
    return subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=not shown, check=False)


def reports(told: Path, sanitizer: Sanitizer = MEMORY) -> list[str]:
    """What was said in any process of a run; by ThreadSanitizer, of the C core: of code that was not built with it (the
    interpreter, other extensions) it cannot know what orders it."""
    said = [path.read_text(errors="replace") for path in told.glob("report.*")]
    return [
        report
        for text in said
        for report in text.split("=" * 18)
        if " native/" in report or (sanitizer is MEMORY and report.strip(" =\n"))
    ]


if __name__ == "__main__":
    threads = sys.argv[1:2] == ["--threads"]
    chosen, sanitizer = (sys.argv[2:], THREADS) if threads else (sys.argv[1:], MEMORY)
    with tempfile.TemporaryDirectory(prefix="atoll-sanitized-") as name:
        core = build(Path(name), sanitizer)
        words = ["-vv", "-m", "not soak", *(chosen or sanitizer.tests)]
        ended = run(core, words, Path(name), sanitizer, shown=True)
        found = reports(Path(name), sanitizer)
        print(*found, sep="\n")
        sys.exit(ended.returncode or bool(found))
