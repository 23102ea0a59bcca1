"""Nodes with the packages of this folder."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

from atoll.ipc.attach import Node as Attached
from tests.microkernel.nodes import RealNode, wait_for_end

PACKAGES = Path(__file__).parent / "packages"
IMAGE = f"""
[image]
name = "test"

[node]
level = "process"
account = "all"

[account.all]
channels = 256

[keyspace.stages]
[keyspace.register]

[server.state]
needs = {{}}

[server.register]
package = "{PACKAGES}/register"
restart = {{ first = 0, most = 0, limit = 1000, within = 1 }}

[server.register.needs]
rows = {{ keyspace = "register", rights = ["read", "write"] }}
outside = {{ folder = "outside" }}

[server.stages]
package = "{PACKAGES}/stages"
restart = {{ first = 0, most = 0, limit = 1000, within = 1 }}

[server.stages.needs]
rows = {{ keyspace = "stages", rights = ["read", "write"] }}
register = {{ server = "register", rights = ["write"] }}
outside = {{ folder = "outside" }}
"""


def edited(folder: Path, text: str) -> str:
    """The package `stages` with something more at the end of its server class."""
    package = folder / "stages"
    shutil.copytree(PACKAGES / "stages", package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(package / "server.py", "a") as server:
        server.write(text)
    return str(package)


def kill_server(attached: Attached, name: str) -> None:
    """End a server's process, as a crash would, and wait for the next one."""
    pid = pid_of(attached, name)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def pid_of(attached: Attached, name: str) -> int:
    (row,) = [row for row in attached.kernel.ps.now() if row.server == name]
    return row.pid


def hold(folder: Path, point: str) -> None:
    """From now on whoever comes to this point stays there."""
    fresh = folder / "fresh"
    fresh.write_text(point)
    fresh.rename(folder / "hold")


def folder_of(node: RealNode, server: str = "stages") -> Path:
    """Where it writes to outside of the store, and reads where it is to stay."""
    return node.folder / "data" / server / "outside"


def outside(node: RealNode) -> dict[int, Counter[str]]:
    """What the steps did outside of the node: by step, how often under which key."""
    found: dict[int, Counter[str]] = {}
    for line in (folder_of(node) / "log").read_text().splitlines():
        step, key = line.split()
        found.setdefault(int(step), Counter())[key] += 1
    return found
