"""Memory of processes with keys is locked, or it is said that it is not; what passes through channels is in no core file."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.ipc.runtime import resident
from tests.microkernel.nodes import booted

from .nodes import diary, image

ROOT = Path(__file__).parents[2]
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


IN_A_WORKER = """
import resource, trio
from atoll.ipc.runtime import resident
from atoll.ipc.runtime.workers import Workers
from tests.private.test_resident import status
resource.getrlimit = lambda which: (resource.RLIM_INFINITY,) * 2
assert (resident.keep(), resident.said()) == ("", "")
async def main():
    workers = Workers(1)
    print(await workers.run(status))
    workers.close()
trio.run(main)
"""


def status() -> str:
    return Path("/proc/self/status").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="who may lock without a limit is root, or has none")
def test_so_is_its_worker_processes() -> None:
    """A fork inherits no lock: what it works with, and what it has of its server's, could be swapped."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_WORKER], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if "mlockall" in done.stderr:
        pytest.skip(f"not here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert locked(done.stdout) > 0


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


def undumped(smaps: str) -> dict[str, bool]:
    """Shared memory that a process maps, and whether a core leaves it out."""
    found: dict[str, bool] = {}
    mapping = ""
    for line in smaps.splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            mapping = line
        elif line.startswith("VmFlags:") and "/memfd:" in mapping:
            found[mapping] = "dd" in line.split()
    return found


def test_no_core_of_the_kernel_has_what_is_said(tmp_path: Path) -> None:
    """It maps every channel. A host whose `core_pattern` is a pipe takes a core whatever the limit: of what is mapped there
    is nothing in that one either."""
    with booted(tmp_path, text=image("process")) as node, node.attach() as attached:
        assert diary(attached).write.now("core", "cora", "words on their way")
        assert node.kernel is not None
        kernel = Path(f"/proc/{node.kernel.pid}")
        (core,) = [line for line in (kernel / "limits").read_text().splitlines() if "core file" in line]
        assert core.split()[4:6] == ["0", "0"]
        shared = undumped((kernel / "smaps").read_text())
    assert any("/memfd:channel " in name for name in shared), "its channels are among them"
    assert [name for name, left_out in shared.items() if not left_out] == []
    mine = undumped(Path("/proc/self/smaps").read_text())
    assert [name for name, left_out in mine.items() if "/memfd:channel " in name and not left_out] == []
