"""Memory of processes with keys is locked, or it is said that it is not."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.ipc.runtime import resident

LOCKS = """
import mmap, resource
from atoll.ipc.runtime import resident
resource.getrlimit = lambda which: (resource.RLIM_INFINITY,) * 2
assert (resident.keep(), resident.said()) == ("", "")
later = mmap.mmap(-1, 64 << 20)
later.write(bytes(1 << 20))
print(open("/proc/self/status").read())
"""


def locked(status: str) -> int:
    """KiB of a process that are locked, by what /proc says of it."""
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck:"))


@pytest.mark.skipif(os.geteuid() != 0, reason="who may lock without a limit is root, or has none")
def test_all_of_the_process_is_locked_and_what_it_maps_later() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKS], capture_output=True, text=True, check=False)
    if "mlockall" in done.stderr:
        pytest.skip(f"not here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert locked(done.stdout) > 64 << 10


def test_with_a_limit_nothing_is_locked_and_the_limit_is_told() -> None:
    held = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, held[1]))
    try:
        assert resident.keep() == (
            "a process here may lock 1 MiB (RLIMIT_MEMLOCK), and all of it would need no limit"
        )
        assert locked(Path("/proc/self/status").read_text()) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, held)
