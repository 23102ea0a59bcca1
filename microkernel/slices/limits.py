"""What a slice may use, apart from the hierarchy that enforces it."""

from typing import Literal

from msgspec import Struct

IoClass = Literal["real-time", "best-effort", "idle"]
IO_CLASSES: dict[IoClass, int] = {"real-time": 1, "best-effort": 2, "idle": 3}


NODES_WEIGHT = 1000
"""Share of the processor, 100 being usual, of all nodes together beside what else the group holds that they were booted in.
A group weighs no more than one process: a node would be as one of its clients, and its servers stand while those that wait
for them run (docs/decisions/0017)."""


class Limits(Struct, frozen=True, kw_only=True):
    """Weights are shares under load (1 to 10000, 100 is usual); None means: no limit but the host's."""

    cpu_weight: int = 100
    cpu_quota: float | None = None
    """Processors at most, such as 1.5."""
    memory: int | None = None
    """Bytes at most; a process over it is killed."""
    pids: int | None = None
    """Threads and processes at most."""
    io_class: IoClass = "best-effort"
    io_weight: int = 100
    device_memory: int | None = None
    """Bytes of accelerators' memory that it may lease at once. The gpu server holds it to that, no group."""
    device_time: float | None = None
    """Share of an accelerator's time, 0 to 1. Written into leases; no mechanism holds anybody to it yet."""
    priority: int = 5
    """0 to 9: whose requests for a device go first."""


def io_priority(limits: Limits) -> int:
    """Class and level as ioprio_set takes them: what the disk's scheduler heeds where it knows no weights.

    Weights of 1 to 10000 fall on levels 7 (least) to 0, doubling or halving a level: 100 is level 4, as the
    system has it.
    """
    level = max(0, min(7, 4 - (limits.io_weight.bit_length() - (100).bit_length())))
    return IO_CLASSES[limits.io_class] << 13 | (0 if limits.io_class == "idle" else level)
