"""A process's end: waited for, or brought about; asked to finish until a deadline, then killed."""

from __future__ import annotations

import trio

from atoll.ipc.system import control

from .mechanisms import Clock, Exit
from .parties import Serving

LAST_WORDS_WITHIN = 0.2
"""Seconds to hear what a process said before it ended, where something else still holds its end."""


async def has_ended(serving: Serving) -> Exit:
    """Wait for a process's end, whatever else is given up, and for all that it said to be heard."""
    assert serving.process is not None
    with trio.CancelScope(shield=True):
        exit = await serving.process.wait()
        with trio.move_on_after(LAST_WORDS_WITHIN):
            await serving.silent.wait()
    return exit


async def end(serving: Serving, reason: str, clock: Clock, deadline: float, grace: float = 0.0) -> None:
    """Let a process finish for so many seconds, and `grace` more to be gone, then kill it. Returns when what it held was
    let go."""
    serving.expected_end = reason
    serving.send(control.Stop(deadline=clock.monotonic() + int(deadline * 1e9)))
    with trio.move_on_after(deadline + grace):
        await serving.ended.wait()
    await end_now(serving, reason)


async def end_now(serving: Serving, reason: str) -> None:
    """End a process that is given no time, and wait until what it held was let go."""
    serving.expected_end = reason
    if serving.process is not None:
        serving.process.kill()
    with trio.CancelScope(shield=True):
        await serving.ended.wait()
