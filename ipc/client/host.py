"""What a channel's client end needs of the process it lives in: a server's loop, or a program outside."""

from collections.abc import Callable
from typing import Protocol


class Host(Protocol):
    """What a channel needs of the process it lives in."""

    def may_block(self, method: str) -> None:
        """Raises `WouldBlock` on a thread that must not wait."""
        ...

    async def wait(self, subscribe: Callable[[Callable[[], None]], None]) -> None:
        """Suspend the task until the callback handed to `subscribe` is called, receiving meanwhile."""
        ...

    def alive(self, wait: float = 0.0) -> bool:
        """Whether the node's kernel still runs, also after so many seconds."""
        ...

    def sent(self) -> None:
        """A request left that nobody waits for yet: see to it that its reply is noticed."""
        ...

    def kick(self, channel: int) -> None:
        """Have the event loop, if there is one, look at this channel: a thread has stopped receiving for it."""
        ...

    def misbehaved(self, channel: int, check: str) -> None:
        """Tell the kernel that this channel's peer wrote what cannot be."""
        ...
