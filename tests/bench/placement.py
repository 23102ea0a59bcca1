"""Which cores the two ends of a contestant run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Cores of the calling side and of the serving side; None: wherever the scheduler puts it."""

    name: str
    client: int | None
    server: int | None


def available() -> list[int]:
    """The cores this process may run on, lowest first."""
    return sorted(os.sched_getaffinity(0))


def one_core() -> Placement:
    """Both sides share a core: the peer never runs while the other waits, so each hand-over is a switch."""
    core = available()[0]
    return Placement("one core", core, core)


def two_cores() -> Placement | None:
    """A core a side, or None where there is only one."""
    cores = available()
    return Placement("two cores", cores[0], cores[-1]) if len(cores) > 1 else None


ANYWHERE = Placement("anywhere", None, None)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keeps the calling thread, and threads it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
