"""The extension built with sanitizers, and tests run on it.

    python -m tests.fuzz.sanitized tests/native tests/ipc       # the long form: make sanitize

What a sanitizer finds ends the process that it is found in, a server's or the tests' own, with its report on stderr.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .build import HERE_MACHINE

ROOT = Path(__file__).resolve().parents[2]
_COMPILE = "from native.build import builder; builder.compile(verbose=False)"
_RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("atoll.native._core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
sys.modules["atoll.native._core"] = core
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def build(folder: Path) -> Path:
    """The sanitized extension, built in `folder` from a copy of the sources."""
    shutil.copytree(ROOT / "native", folder / "native", ignore=shutil.ignore_patterns("*.so", "_core.c"))
    flags = " ".join(HERE_MACHINE.sanitizers)
    environment = os.environ | {"ATOLL_CFLAGS": f"{flags} -O1", "ATOLL_LDFLAGS": flags, "PYTHONPATH": "."}
    subprocess.run([sys.executable, "-c", _COMPILE], cwd=folder, env=environment, check=True)
    return next((folder / "atoll" / "native").glob("_core*.so"))


def run(core: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """pytest in a process that has the sanitized core in place of the usual one."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    library = subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=1",  # the interpreter itself leaks at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "ATOLL_CFLAGS": " ".join(HERE_MACHINE.sanitizers),
        "PYTHONMALLOC": "malloc",
    }
    words = [
        sys.executable,
        "-c",
        _RUN,
        str(core),
        "-p",
        "no:cacheprovider",
        "-q",
        "--timeout",
        "300",
        *arguments,
    ]
    return subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="atoll-sanitized-") as name:
        ended = run(build(Path(name)), ["-m", "not soak", *sys.argv[1:]])
        print(ended.stdout[-20_000:], ended.stderr[-20_000:], sep="\n")
        sys.exit(ended.returncode)
