"""Whether nodes have control groups here."""

import os

from atoll.microkernel.slices import choose


def control_groups() -> bool:
    """Whether this user may make some. Nothing is left of the trial, and this process is where it was."""
    made = choose(f"trial-{os.getpid()}")
    made.leave()
    return made.kind != "none"
