"""One workflow while this process runs it: its rows, and when it has to stop.

Each time it is taken up its row is written anew, and whatever is committed for it expects the row as that left it. So
nothing that an earlier process, or this one before, still had in hand is committed any more; and who writes the row from
outside, to cancel it, thereby stops it between two steps.
"""

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import trio

from atoll.ipc.context import Fields, Log, in_hand
from atoll.ipc.dispatch import as_reply
from atoll.ipc.errors import Aborted, AtollError, Conflict, Overloaded, PeerDied, TooLarge
from atoll.ipc.errors import encode as encode_error
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.state import Expect, Range, State, StoreFull, Write

from .effects import Effects
from .rows import (
    RUNS_MOST,
    Status,
    StepRow,
    WorkflowRow,
    done_key,
    encode,
    number_in,
    open_key,
    step_key,
    step_of,
    steps_between,
    unique_key,
    workflow_of,
)
from .steady import Steady
from .workflow import Between, Recorded, Workflow

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
"""Seconds between attempts to write to a store that is not there, or full."""
PAGE: Final = 1000

R = TypeVar("R")
Handler = Callable[..., Coroutine[Any, Any, Any]]


async def persistently(
    ask: Callable[[], Awaitable[R]], over: tuple[type[AtollError], ...] = (PeerDied, Overloaded, StoreFull)
) -> R:
    """What waits for the store, over some failures: with no others named, while it restarts, is overloaded or full. A
    write whose outcome is unknown is repeated, so it must be one that its expectations then refuse."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await ask()
        except over as fault:
            Log().warning("a workflow waits for the store", reason=str(fault))
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def ending(
    row: WorkflowRow, status: Status, now: float, executor: bytes, **more: Any
) -> tuple[WorkflowRow, list[Write]]:
    """A workflow's end, and what it writes."""
    ended = msgspec.structs.replace(row, status=status, ended=now, executor=executor, **more)
    writes = [Write(open_key(row.name)), Write(done_key(row.name), encode(ended))]
    if row.deduplication:
        writes.append(Write(unique_key(row)))
    return ended, writes


class Execution:
    """See the module; and `workflow.Run`, which this is."""

    def __init__(
        self, state: State, time: Steady, row: WorkflowRow, revision: int, spec: MethodSpec, *, fresh: bool
    ) -> None:
        """`revision`: of the row as this process wrote it; `fresh`: no step of it has run."""
        self.row = row
        self.spec = spec
        self.revision = revision
        self.over = trio.Event()
        self.parked = ""
        self._time = time
        self._state = state
        self._fresh = fresh
        self._steps: dict[int, tuple[StepRow, int]] = {}
        self._scope = trio.CancelScope()
        self._stopping = False
        self.in_step = False

    # what the workflow asks of it ------------------------------------------------------------------------------------

    def recorded(self, number: int) -> StepRow | None:
        known = self._steps.get(number)
        return None if known is None else known[0]

    def effects(self) -> Effects:
        return Effects(self._state)

    async def gate(self) -> None:
        if self._stopping:
            await self._stop()
        self.in_step = True

    def now(self) -> float:
        return self._time.now()

    async def wait(self, number: int, step: StepRow) -> None:
        self.in_step = False
        if self._stopping:
            await self._stop()
        if self._left(step) > 0 and self.row.fruitless(step.run) >= RUNS_MOST // 2:
            # Who waits ends no server: without this a long timer would be parked that was taken up often.
            step = await self.record(number, msgspec.structs.replace(step, run=self.row.runs), None)
        if (left := self._left(step)) > 0:
            await trio.sleep(left)

    def _left(self, step: StepRow) -> float:
        return min(step.until - self.now(), step.until - step.ended)

    async def park(self, reason: str) -> NoReturn:
        self.parked = reason
        await self._stop()

    async def record(self, number: int, step: StepRow, effects: Effects | None) -> StepRow:
        key = step_key(self.row.name, number)
        before = self._steps.get(number, (step, 0))[1]
        expects: list[Expect | Range] = [Expect(open_key(self.row.name), self.revision), Expect(key, before)]
        note = f"{self.row.method} {self.row.id}, step {number}"
        own = effects or self.effects()
        with in_hand(None):
            try:
                outcome = await persistently(partial(own.commit, [Write(key, encode(step))], expects, note))
            except (Conflict, Aborted):
                found = await persistently(partial(self._found, key, before), (AtollError,))
                if found is None:
                    raise
            else:
                found = step, outcome.revision
        self._steps[number] = found
        self.in_step = False
        return found[0]

    async def _found(self, key: bytes, before: int) -> tuple[StepRow, int] | None:
        """Why a step could not be committed: None if others wrote what it had read. Else it was committed by this very
        run, whose store died over the answer; or the workflow is not this run's any more. Whoever does not know which must
        not run the step again."""
        row, step = await self._state.get(open_key(self.row.name)), await self._state.get(key)
        if row is None or row.revision != self.revision:
            await self._stop()
        if step is None or step.value is None or step.revision == before:
            return None
        return step_of(step.value), step.revision

    async def _stop(self) -> NoReturn:
        self._stopping = True
        self._scope.cancel()
        await trio.sleep_forever()
        raise AssertionError("a cancelled task goes on")

    # from outside ----------------------------------------------------------------------------------------------------

    def stop(self, *, at_once: bool) -> None:
        """Run no further step. `at_once`: nor is a running one waited for."""
        self._stopping = True
        if at_once or not self.in_step:
            self._scope.cancel()

    async def run(self, handler: Handler) -> tuple[WorkflowRow, int] | None:
        """To its end: the row as it ended, durable, and its revision. None: it was stopped before, and is open."""
        with self._scope:
            if not self._fresh:
                await self._load()
            return await self._end(*await self._outcome(handler))
        return None

    async def _load(self) -> None:
        start, end = steps_between(self.row.name)
        while True:
            page = await self._state.range(start, end, PAGE)
            for item in page.items:
                if item.value is not None:
                    self._steps[number_in(item.key)] = step_of(item.value), item.revision
            if not page.more:
                return
            start = page.items[-1].key + b"\0"

    async def _outcome(self, handler: Handler) -> tuple[Status, dict[str, bytes]]:
        row, time = self.row, Recorded(self.row.begun)
        fields = Fields(
            method=row.method,
            badge=row.badge,
            rights=frozenset(row.rights),
            trace=row.trace,
            seed=row.token,
        )
        flow = Workflow(self, time)
        try:
            arguments = msgspec.msgpack.decode(row.arguments, type=self.spec.arguments)
            given = {name: getattr(arguments, name) for name in self.spec.arguments.__struct_fields__}
            with in_hand(Between(fields, time)):
                reply = encode(await handler(flow, **given))
        except Exception as error:
            await trio.lowlevel.checkpoint()  # what a cancelled handler raises is no outcome
            await self._complete(flow)
            return "failed", {"fault": encode_error(as_reply(self.spec, error))}
        except BaseExceptionGroup:  # of one with a nursery of its own, likewise
            await trio.lowlevel.checkpoint()
            raise
        await self._complete(flow)
        return "completed", {"reply": reply}

    async def _complete(self, flow: Workflow) -> None:
        """It must have asked for all that is recorded."""
        more = sorted(number for number in self._steps if number > flow.steps)
        if more:
            await self.park(
                f"step {more[0]}: expected {self._steps[more[0]][0].name!r}, as it was recorded, found the end: "
                "the workflow does not ask for the same steps as before"
            )

    async def _end(self, status: Status, outcome: dict[str, bytes]) -> tuple[WorkflowRow, int] | None:
        self.in_step = True
        try:
            return await self._ended(status, outcome)
        except TooLarge as error:
            fault = encode_error(error)
        try:
            return await self._ended("failed", {"fault": fault})
        except TooLarge:
            # Its arguments fitted into its beginning, and with a word more do not. An end there must be.
            return await self._ended("failed", {"fault": fault, "arguments": b""})

    async def _ended(self, status: Status, outcome: dict[str, bytes]) -> tuple[WorkflowRow, int] | None:
        ended, writes = ending(self.row, status, self.now(), self.row.executor, **outcome)
        expects: list[Expect | Range] = [Expect(open_key(self.row.name), self.revision)]
        note = f"{self.row.method} {self.row.id}, {status}"
        try:
            committed = await persistently(partial(self._state.commit, writes, expects, note=note))
        except Conflict:
            found = await self._state.get(done_key(self.row.name))
            if found is None or found.value is None:
                return None
            return workflow_of(found.value), found.revision
        return ended, committed.revision
