"""Where simulated servers say what they serve, for the world they live in to look at."""

from collections.abc import Callable


def _nobody(badge: int) -> None:
    """A package that is only asked what it is."""


serves: Callable[[int], None] = _nobody
"""A handler has taken its first step, for a call under a capability with this badge."""
