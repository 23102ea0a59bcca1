"""A server as the kernel has it: what it is to be, how it stands, and the process that serves now. Data; whoever changes
it holds `changing`.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Literal

import trio
from msgspec.structs import replace

from atoll.ipc.runtime.describe import Description
from atoll.ipc.system import control
from atoll.ipc.system.kernel import State
from atoll.ipc.system.keys import SERVER as KEYS

from .image import PURGE, Binding, KeyspaceBinding, ServerBinding
from .image_check import KEYS_INTERFACE
from .parties import Serving
from .protection import Plan
from .slices import Limits
from .specs import Spec
from .versions import Version

ON_ITS_WAY: tuple[State, ...] = ("starting", "draining", "restarting")
"""States of a server that is about to serve."""


def keys_of(need: str) -> str:
    """The name of the need that goes with one for a private keyspace; no attribute is called so."""
    return f"{need} keys"


class Server:
    """A server of the node, with or without a process."""

    def __init__(self, spec: Spec, description: Description, version: Version) -> None:
        self.spec = spec
        self.description = description
        self.replaced: Description | None = None
        """While it is swapped what its version said of itself that runs until then, and goes on if the swap is refused."""
        self.version = version
        self.offered: tuple[control.Described, ...] = ()
        """As the latest process said it, with schemas."""
        self._state: State = "stopped"
        self._changed = trio.Event()
        """Set at the next change of its state."""
        self.reason = ""
        self.serving: Serving | None = None
        self.latest = 0
        """Number of the process that was started last, whatever came of it."""
        self.plan: Plan | None = None
        self.sockets: dict[str, socket.socket] = {}
        self.restarts = 0
        self.crashes: deque[float] = deque()
        """When it crashed lately: CLOCK_MONOTONIC seconds."""
        self.changing = trio.Lock()
        """One change of its life at a time."""
        self.own: Limits | None = None
        """What a person set for it to use, beneath its slice."""
        self.unenforced: tuple[str, ...] = ()
        self.swappable: tuple[str, ...] = ()
        """Why what it has in memory may be written to a swap device, though it keeps secrets."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, now: State) -> None:
        self._state = now
        self._changed.set()
        self._changed = trio.Event()

    async def arrived(self) -> None:
        """Wait while it is about to serve: until it does, or will not."""
        while self._state in ON_ITS_WAY:
            await self._changed.wait()

    @property
    def needs(self) -> dict[str, Binding]:
        """Its needs, bound; with each private keyspace, under `keys_of` its name, the capability for its keys."""
        found: dict[str, Binding] = {}
        for need, bound in self.spec.needs.items():
            about = self.description.needs.get(need)
            if isinstance(bound, KeyspaceBinding) and about is not None and about.private:
                found[need] = replace(bound, rights=tuple(right for right in bound.rights if right != PURGE))
                rights = ("use", PURGE) if PURGE in bound.rights else ("use",)
                found[keys_of(need)] = ServerBinding(
                    server=KEYS, interface=KEYS_INTERFACE, rights=rights, badge=bound.keyspace
                )
            else:
                found[need] = bound
        return found

    @property
    def keeps_secrets(self) -> bool:
        """Whether it has keys, or what they open, in its memory."""
        return self.name == KEYS or self.description.keeps_private

    @property
    def keeps_private(self) -> bool:
        """Whether it has a private keyspace, also in a version that it may go back to."""
        return any(each is not None and each.keeps_private for each in (self.description, self.replaced))

    @property
    def start(self) -> Literal["zygote", "exec"]:
        """How its processes start: a heavy one by `exec` always."""
        return "exec" if self.description.heavy or self.spec.start == "exec" else "zygote"
