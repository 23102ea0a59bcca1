"""Real nodes for tests: an image in a temporary folder, a kernel process, programs that attach."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from atoll.ipc.attach import Node as Attached
from atoll.ipc.attach import connect
from atoll.ipc.system.state import State, StoreFull, Write
from atoll.microkernel.place import Place
from atoll.microkernel.slices import hierarchy

PACKAGES = Path(__file__).parent / "packages"
IMAGE = """
[image]
name = "test"

[node]
level = "{level}"
account = "all"

[account.all]
channels = 256
buffers = "4MiB"

[keyspace.counter]

[server.state]
level = "process"
needs = {{}}

[server.counter]
package = "{packages}/counter"
needs = {{ rows = {{ keyspace = "counter", rights = ["read", "write"] }} }}
{counter}
[server.teller]
package = "{packages}/teller"
needs = {{ counter = {{ server = "counter", rights = ["read", "write"] }} }}
{more}
"""
STUBBORN = f"""
[slice.few]
pids = 64

[server.stubborn]
package = "{PACKAGES}/stubborn"
slice = "few"
needs = {{}}
"""
"""A server that will not end, in a slice of few processes."""


class RealNode:
    """A kernel process and the folder of its node."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder / "node"
        self.image = folder / "image.toml"
        self.image.write_text(text)
        self.kernel: subprocess.Popen[str] | None = None
        self.said: list[str] = []

    def command(self, *more: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "atoll.microkernel",
            "boot",
            str(self.image),
            "--folder",
            str(self.folder),
            *more,
        ]

    def boot(self, *more: str, fail_at: str = "") -> None:
        """Boot, and wait until it serves. AssertionError with what it said, if it does not. `fail_at`: the step at which
        this kernel is to be killed; `STEP@N`: as it comes to it for the Nth time."""
        self.kernel = subprocess.Popen(
            self.command(*more),
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            | {"ATOLL_FAIL_AT": fail_at},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.kernel.stdout is not None
        self.said = []
        for line in self.kernel.stdout:
            self.said.append(line.rstrip())
            if " serves: " in line:
                return
        self.kernel.wait()
        self._drop()
        raise AssertionError("it did not boot: " + "\n".join(self.said))

    def attach(self) -> Attached:
        return connect(str(self.folder))

    def kill(self) -> float:
        """End the kernel with no chance to tidy up; when it was killed."""
        assert self.kernel is not None
        self.kernel.kill()
        killed = time.monotonic()
        self.kernel.wait()
        self._drop()
        return killed

    def stop(self) -> int:
        """End it in order; the exit status."""
        if self.kernel is None:
            return 0
        self.kernel.send_signal(signal.SIGTERM)
        out, _ = self.kernel.communicate()
        self.said += out.splitlines()
        status = self.kernel.returncode
        self.kernel = None
        return status

    def died(self) -> None:
        """Wait for a kernel that is about to be killed."""
        assert self.kernel is not None
        assert self.kernel.wait() == -signal.SIGKILL
        self._drop()

    def _drop(self) -> None:
        assert self.kernel is not None and self.kernel.stdout is not None
        self.kernel.stdout.close()
        self.kernel = None

    def processes(self) -> list[int]:
        """Every process of this node."""
        marker = f"atoll-node={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if marker in words:
                    found.append(int(entry.name))
        return found


def package(name: str) -> ModuleType:
    """The interface module of a test package."""
    if str(PACKAGES) not in sys.path:
        sys.path.insert(0, str(PACKAGES))
    return importlib.import_module(f"{name}.interface")


def interface(name: str, kind: str) -> Any:
    """An interface of a test package."""
    return getattr(package(name), kind)


@contextmanager
def booted(
    folder: Path,
    *,
    level: str = "process",
    counter: str = "",
    more: str = "",
    text: str = "",
    flags: tuple[str, ...] = (),
) -> Iterator[RealNode]:
    """A node that serves; ended in order afterwards if it still runs."""
    filled = text or IMAGE.format(level=level, packages=PACKAGES, counter=counter, more=more)
    node = RealNode(folder, filled)
    node.boot(*flags)
    try:
        yield node
    finally:
        if node.kernel is not None:
            assert node.stop() == 0, "\n".join(node.said)


def groups_of(node: RealNode) -> list[Path]:
    """The node's control groups, one a hierarchy."""
    return hierarchy.left_by(Place(name="test", folder=node.folder, image_path="", degrade=False).group)


@contextmanager
def halted(attached: Attached) -> Iterator[None]:
    """The store does nothing meanwhile, as where its disk is slow; then it has all at once of what was sent."""
    pid = next(row.pid for row in attached.kernel.ps.now() if row.server == "state")
    os.kill(pid, signal.SIGSTOP)
    try:
        while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            pass
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_for_end(pid: int) -> None:
    """Until a process that is not our child is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    try:
        select.select([pidfd], [], [])
    finally:
        os.close(pidfd)


def fill_store(state: State) -> tuple[int, str]:
    """How many rows of 100 kB the store took, and what it said to the next one."""
    count = 0
    while True:
        try:
            state.commit.now([Write(b"%06d" % count, bytes(100_000))])
        except StoreFull as full:
            return count, str(full)
        count += 1
