"""What the kernel's own client channels find in place of a process: its receive loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atoll.ipc import context
from atoll.ipc.future import wait_for


class LoopHost:
    """The kernel as the process its client channels live in: its receive loop drains them. `misbehaved` is told of a
    channel whose peer wrote what cannot be, and what was wrong."""

    def __init__(self, misbehaved: Callable[[int, str], None]) -> None:
        self._misbehaved = misbehaved

    def may_block(self, method: str) -> None:
        context.forbid_blocking(method)

    async def wait(self, subscribe: Any) -> None:
        await wait_for(subscribe)

    def alive(self, wait: float = 0.0) -> bool:
        return True

    def closed(self, channel: int) -> bool:
        return False  # the kernel itself takes it out of its loop then

    def looping(self) -> bool:
        return True

    def owing(self, when_paid: Any, settle: Any) -> None:
        """The loop looks for room, too."""

    def sent(self) -> None:
        """The loop looks at every channel."""

    def kick(self, channel: int) -> None:
        """The loop looks at every channel."""

    def misbehaved(self, channel: int, check: str) -> None:
        self._misbehaved(channel, check)
