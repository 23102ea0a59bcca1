"""What becomes of workflows that have ended: they are kept for as long as their server says, then they go with their steps.

A workflow goes in one transaction with all of its steps. Else whoever resumed it meanwhile, or gave its id to another one,
would find some of its steps done and others not. One with more steps than fit a transaction stays.
"""

from typing import Final

import trio

from atoll.ipc.context import Log
from atoll.ipc.errors import AtollError, Conflict, TooLarge
from atoll.ipc.local_view import after_prefix
from atoll.ipc.system.state import Expect, State, Write

from .rows import DONE, ENDED, WorkflowRow, done_key, steps_between, workflow_of
from .steady import Steady

PAGE: Final = 1000
OFTEN: Final = 1.0
SELDOM: Final = 3600.0
"""Seconds between two looks at least, and at most."""
LOOKS: Final = 8
"""So many looks in the time that a workflow is kept for."""


async def forget(state: State, time: Steady, kept: float) -> None:
    """Until cancelled: what has ended longer ago than `kept` seconds goes."""
    while True:
        try:
            count = await forget_before(state, time.now() - kept)
        except AtollError as fault:
            Log().warning("workflows that have ended wait for the store", reason=str(fault))
        else:
            if count:
                Log().debug("workflows that had ended were removed", count=str(count))
        await trio.sleep(min(max(OFTEN, kept / LOOKS), SELDOM))


async def forget_before(state: State, moment: float) -> int:
    """Removes those that ended before a moment, in seconds since the epoch; gives how many."""
    start, count = DONE, 0
    while True:
        page = await state.range(start, after_prefix(DONE), PAGE)
        for item in page.items:
            row = workflow_of(item.value or b"")
            if row.status in ENDED and row.ended < moment:
                count += await remove(state, row, item.revision)
        if not page.more:
            return count
        start = page.items[-1].key + b"\0"


async def remove(state: State, row: WorkflowRow, revision: int) -> bool:
    """Removes one whose row is at a revision. Whether it is gone: not if somebody wrote the row meanwhile."""
    writes, (start, end) = [Write(done_key(row.name))], steps_between(row.name)
    while True:
        page = await state.range(start, end, PAGE)
        writes += [Write(item.key) for item in page.items]
        if not page.more:
            break
        start = page.items[-1].key + b"\0"
    note = f"{row.method} {row.id}, removed"
    try:
        await state.commit(writes, [Expect(done_key(row.name), revision)], note=note)
    except Conflict:
        return False
    except TooLarge:
        return False
    return True
