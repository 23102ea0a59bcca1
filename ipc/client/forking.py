"""What a fork makes of channels: the child has the memory mapped, and none of the right to write there.

Two processes that send on one ring would overwrite each other, and the server would close the channel over what it
reads. So in a child every channel of the parent's is ended, with a sentence.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    def forked(self) -> None:
        """This process is a fork of the one that opened it."""


_watched: WeakSet[Inherited] = WeakSet()


def watch(channel: Inherited) -> None:
    """Have `forked` called in every child that this process forks from now on."""
    _watched.add(channel)


def _tell() -> None:
    for channel in list(_watched):
        channel.forked()


os.register_at_fork(after_in_child=_tell)
