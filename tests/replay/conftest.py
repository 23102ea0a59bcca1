"""One node for all tests of this folder: `till` is recorded, `rates` audited in full, `sampled` by samples."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import AtollError
from atoll.ipc.system.calls import Recorded, keyspace_of
from atoll.servers.shell.recorded import Process, Records
from atoll.servers.shell.replay import Again, Report
from tests.microkernel.nodes import RealNode, booted

PACKAGES = Path(__file__).parent / "packages"
EARLIER = 1_000_000
"""Nanoseconds by which the times of two clocks may differ."""
IMAGE = f"""
[image]
name = "replay"

[node]
level = "process"

[keyspace.till]

[server.state]
needs = {{}}

[server.rates]
package = "{PACKAGES}/rates"
audit = "full"
needs = {{}}

[server.sampled]
package = "{PACKAGES}/rates"
audit = "sample"
needs = {{}}

[server.hasty]
package = "{PACKAGES}/rates"
record = true
needs = {{}}

[server.scribe]
package = "{PACKAGES}/scribe"
level = "sandbox"
needs = {{}}

[server.till]
package = "{PACKAGES}/till"
record = true
audit = "full"
restart = {{ first = 0, most = 0, limit = 1000, within = 1 }}
needs.rows = {{ keyspace = "till", rights = ["read", "write", "history"] }}
needs.rates = {{ server = "rates", rights = ["read"] }}
"""


def interface(package: str, name: str) -> Any:
    """An interface of a package of this folder."""
    if str(PACKAGES) not in sys.path:
        sys.path.insert(0, str(PACKAGES))
    return getattr(importlib.import_module(f"{package}.interface"), name)


class Recording:
    """The node, a program that is attached to it, and what it has recorded."""

    def __init__(self, node: RealNode, attached: Attached) -> None:
        self.node = node
        self.attached = attached
        self.till = attached.open("till", interface("till", "Till"))
        self.rates = attached.open("rates", interface("rates", "Rates"))

    def made(self, server: str, method: str, call: Callable[[], object]) -> str:
        """Make a call; its id, once what came of it is recorded."""

        def wanted(process: Process, found: Recorded) -> bool:
            return process.method(found).endswith(f".{method}")

        since = time.time_ns() - EARLIER
        state = self.attached.keyspace(keyspace_of(server))
        head = state.head.now()
        with suppress(AtollError):
            call()
        for _ in state.watch.now(head):
            for _, found in Records(self.attached).last(server, 1, wanted, since):
                if found.outcome != "none":
                    return found.id
        raise AssertionError("the store ended the feed")

    def again(self, id: str, package: Path | None = None) -> Report:
        """Run a call again, as the command does."""
        again = Again(self.attached, id, package)
        report = again.report(again.run())
        return again.report(again.run()) if report.reasons and again.remember() else report


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    with booted(tmp_path_factory.mktemp("replay"), text=IMAGE) as node, node.attach() as attached:
        yield Recording(node, attached)
