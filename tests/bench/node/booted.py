"""A node for the length of a row: booted by the command, from an image made here, in a folder of the run."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.ipc.attach import Node as Attached
from atoll.ipc.attach import connect

from ..frame import Unavailable
from ..leased import Leased

ECHO = Path(__file__).resolve().parents[1] / "echo"
LEVELS = ("process", "seccomp", "sandbox")
KEYSPACE = "ratings"
HEAD = """
[image]
name = "bench"

[node]
level = "sandbox"
account = "all"

[account.all]
channels = 512
buffers = "256MiB"
descriptors = 4096
pending = 4096

[keyspace.{keyspace}]

[server.state]
level = "seccomp"
needs = {{}}
"""
ONE = """
[server.echo_{level}]
package = "{package}"
level = "{level}"
needs = {{}}
"""


def image() -> str:
    """The store, and the same echo at each level."""
    return HEAD.format(keyspace=KEYSPACE) + "".join(ONE.format(level=level, package=ECHO) for level in LEVELS)


class Booted(Leased):
    """One node for all contestants of a row; it is up while any of them is open."""

    def __init__(self, scratch: Path, text: str = "", name: str = "node") -> None:
        super().__init__()
        self.folder = scratch / name
        self._image = scratch / f"{name}.toml"
        self._text = text

    @contextmanager
    def attached(self) -> Iterator[Attached]:
        with self.lease(), connect(str(self.folder)) as node:
            yield node

    def _start(self) -> None:
        self._image.write_text(self._text or image())
        command = [sys.executable, "-P", "-m", "atoll.microkernel", "boot", str(self._image)]
        self._kernel = subprocess.Popen(
            [*command, f"--folder={self.folder}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._kernel.stdout is not None
        said = []
        for line in self._kernel.stdout:
            said.append(line)
            if " serves: " in line:
                return
        self._kernel.wait()
        self._kernel.stdout.close()
        raise Unavailable("the node did not boot: " + " ".join(said[-3:]).strip())

    def _stop(self) -> None:
        assert self._kernel.stdout is not None
        self._kernel.send_signal(signal.SIGTERM)
        self._kernel.communicate()
        shutil.rmtree(self.folder)

    def processes(self) -> list[int]:
        """Every process of the node, its kernel first."""
        marker = f"atoll-node={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):  # it ended between the two looks
                continue
            if marker in words:
                found.append(int(entry.name))
        return [self._kernel.pid, *found]


def place(node: Attached, server: str, core: int | None) -> None:
    """Have a server's process run on one core, from outside, as an operator might."""
    pid = next(row.pid for row in node.kernel.ps.now() if row.server == server)
    cores = os.sched_getaffinity(0) if core is None else {core}
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cores)
