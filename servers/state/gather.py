"""When to commit: the rule that makes groups large under load and costs a lone client nothing.

After a group is answered its clients send their next calls, but not all at the same instant. Committing the
first of them alone would make the others wait for a whole commit. So the size of the last group is
remembered, shrinking by an eighth a group, and while fewer have arrived the commit waits: at most half of
what a commit takes on average, which bounds what can be lost by it when nobody else comes. One client is
remembered as one, and never waits.
"""

from typing import Final

_SHRINK: Final = 1 / 8
_SHARE: Final = 1 / 2
_SMOOTH: Final = 1 / 8
"""Weight of the newest commit in the running mean."""


class Gather:
    """Durations in seconds."""

    def __init__(self) -> None:
        self.expected = 1.0
        self.mean = 0.0

    def wait(self, size: int, age: float) -> float:
        """How much longer to wait for more, given a group of `size` that began `age` ago; 0: commit now."""
        if size >= int(self.expected):
            return 0.0
        return max(0.0, self.mean * _SHARE - age)

    def committed(self, size: int, seconds: float) -> None:
        """A group was committed in that time."""
        self.expected = max(float(size), self.expected * (1 - _SHRINK), 1.0)
        self.mean = seconds if self.mean == 0 else self.mean + (seconds - self.mean) * _SMOOTH
