"""What a channel's client end needs of the process it lives in: a server's loop, or a program outside."""

from collections.abc import Callable
from typing import Protocol

Subscribe = Callable[[Callable[[], None]], None]
"""Takes what is to be called when something has come about, by whatever thread."""


class Host(Protocol):
    """What a channel needs of the process it lives in."""

    def may_block(self, method: str) -> None:
        """Raises `WouldBlock` on a thread that must not wait."""
        ...

    async def wait(self, subscribe: Subscribe) -> None:
        """Suspend the task until the callback handed to `subscribe` is called, receiving meanwhile."""
        ...

    def looping(self) -> bool:
        """Whether an event loop runs on this thread, which must not stand for long."""
        ...

    def owing(self, when_paid: Subscribe, settle: Callable[[], None]) -> None:
        """A withdrawn request's channel owes records, and perhaps nobody waits for anything any more: see to it that they
        are sent when there is room. `when_paid` tells when they are; `settle` halts the thread until then."""
        ...

    def alive(self, wait: float = 0.0) -> bool:
        """Whether the node's kernel still runs, also after so many seconds."""
        ...

    def closed(self, channel: int) -> bool:
        """Whether the kernel has closed this channel, as far as it has said: what it says may lie unread."""
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
