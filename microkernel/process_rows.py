"""The rows of a server's process: that it runs, and what protects it."""

import os

from atoll.ipc.system.records import ProcessRow, ProtectionRow

from .node import Node
from .parties import Serving
from .server import Server


def process_row(node: Node, server: Server, serving: Serving) -> ProcessRow:
    """The row of a process as it runs."""
    return ProcessRow(
        boot=node.boot, process=serving.number, server=serving.serves, version=serving.version,
        pid=serving.pid, started=serving.started, uid=node.uid(server) or os.geteuid(),
    )  # fmt: skip


def protection_row(server: Server) -> ProtectionRow:
    """The row of what protects a server that was started."""
    plan = server.plan
    assert plan is not None
    return ProtectionRow(
        server=server.name, asked=plan.wanted, level=plan.level, mechanisms=plan.in_force,
        weakenings=tuple((w.mechanism, w.reason) for w in plan.weakenings),
    )  # fmt: skip
