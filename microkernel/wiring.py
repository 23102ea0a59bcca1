"""A node's parts, made and joined, in the one place that knows them all: each gets what there is (`Node`), and the parts
below it that it uses. So this is the order in which they build on one another.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Endpoint

from .allotments import Allotments
from .authority import RIGHTS, Authority
from .conversation import Conversation
from .events import Events
from .gate import Gate
from .grants import Grants
from .holders import Holders
from .launching import Launching
from .life import Life
from .logs import Logs
from .looking import Looking
from .needs import Needs
from .node import Node
from .packages import Packages
from .parties import KERNEL
from .powers import Powers
from .readers import Readers
from .supervisor import Supervisor
from .swap import Swaps
from .syscalls import Syscalls
from .watchdog import Watchdog
from .windows import Windows


class Parts(NamedTuple):
    """Those that whoever boots the node speaks to."""

    logs: Logs
    events: Events
    grants: Grants
    authority: Authority
    allotments: Allotments
    needs: Needs
    supervisor: Supervisor
    readers: Readers
    watchdog: Watchdog
    gate: Gate


def wire(node: Node) -> Parts:
    """Make a node's parts, and its loop, which calls them."""
    logs = Logs(node)
    events = Events(node, logs)
    node.ledger.refused = events.over_quota
    node.store.gave_up = events.rows_given_up
    node.forge.renewed = lambda how: events.event(
        "fork server ended", KERNEL, f"the fork server {how}, and there is another"
    )
    grants, holders = Grants(node), Holders(node)
    authority = Authority(node, events, grants, holders)
    allotments = Allotments(node, events)
    needs = Needs(node, authority)
    conversation = Conversation(logs, events, authority)
    launching = Launching(node, logs, allotments, authority, grants, needs, conversation)
    supervisor = Supervisor(node, logs, events, authority, launching)
    readers = Readers(node, events, authority, launching, supervisor, holders)
    packages, windows = Packages(node, launching), Windows(events)
    looking = Looking(node, events, readers)
    life = Life(node, events, grants, authority, needs, supervisor, packages, windows)
    powers = Powers(node, events, authority, windows)
    swaps = Swaps(node, events, grants, authority, needs, launching, supervisor, readers, packages)
    syscalls = Syscalls(node, logs, events, allotments, grants, looking, life, powers, swaps)
    node.loop = ServeLoop(
        Endpoint(syscalls, None),
        node.kernel.notice.memory.map,
        mmap.mmap(-1, mmap.PAGESIZE),
        {"Kernel": RIGHTS},
        TurnedAway(events, authority),
    )
    return Parts(
        logs, events, grants, authority, allotments, needs, supervisor, readers,
        Watchdog(node, events, readers), Gate(node, events, authority),
    )  # fmt: skip


class TurnedAway:
    """Hears what the kernel's own loop turned away."""

    def __init__(self, events: Events, authority: Authority) -> None:
        self._events = events
        self._authority = authority

    def refused(self, channel: int, slot: int, method: int, why: str) -> None:
        self._events.refused(KERNEL, channel, method, why, 1)

    def misbehaved(self, channel: int, check: str) -> None:
        self._authority.misbehaved(KERNEL, channel, check)
