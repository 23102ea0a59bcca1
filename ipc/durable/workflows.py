"""The workflows of one server: begun by calls, taken up again at a start, watched for what others write to their rows.

The rows decide, not this process's memory: whoever may write the keyspace cancels a workflow, resumes or forks it by a
write (`administration.py`), and the feed brings that here. A server that is about to be swapped runs no further step
(`pause`); if it serves on after all it takes up what it finds (`go_on`), as its next version would have.
"""

import math
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
import trio

from atoll.ipc import chance
from atoll.ipc.context import Call, Log, current, in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.errors import AtollError, BadRequest, Conflict, NotFound, WorkflowCancelled
from atoll.ipc.errors import decode as decode_error
from atoll.ipc.interface import Method
from atoll.ipc.keyspace import settled
from atoll.ipc.local_view import after_prefix
from atoll.ipc.method import MethodSpec
from atoll.ipc.system.state import Expect, Item, Range, State, Write

from .execution import FIRST_PAUSE, LONGEST_PAUSE, PAGE, Execution, Handler, ending, persistently
from .method import DurableMethod, Start
from .queues import Admission, Queue, Waiting
from .retention import forget
from .rows import (
    ENDED,
    LONGEST,
    OPEN,
    RUNS_MOST,
    QueueRow,
    WorkflowRow,
    done_key,
    encode,
    name_in,
    name_of,
    named,
    open_key,
    queue_key,
    queue_of,
    step_of,
    steps_between,
    unique_key,
    workflow_of,
)
from .steady import Steady

_BEGUN: Final = b"begun"
_origin = struct.Struct(">5sQQQQ")
"""Commit id of a call that begins a workflow and gives no id."""

MayGoOn = Callable[[str, str], bool]


class Workflows:
    """Of one server instance. `may_go_on(method, version)`: whether workflows that an earlier version has begun go on."""

    def __init__(
        self,
        state: State,
        handlers: Mapping[DurableMethod[Any, Any], Handler],
        queues: Mapping[str, Queue],
        *,
        boot: int,
        version: str,
        may_go_on: MayGoOn,
        kept: float,
    ) -> None:
        """`kept`: seconds for which those that have ended are kept."""
        self._state = state
        self._handlers = {method.spec.label: (method.spec, handler) for method, handler in handlers.items()}
        self._durable: dict[Method, DurableMethod[Any, Any]] = {
            part: method
            for method in handlers
            for part in (method, method.begin, method.result, method.cancel)
        }
        self._boot = boot
        self._version = version
        self._may_go_on = may_go_on
        self._kept = kept
        self._time = Steady()
        self._executor = chance.token(8)
        self._executions: dict[str, Execution] = {}
        self._open: dict[str, tuple[WorkflowRow, int]] = {}
        """Those that have not ended, with the revision of their rows."""
        self._waiters: defaultdict[str, list[Deferred[WorkflowRow]]] = defaultdict(list)
        self._queues = {"": Queue(), **queues}
        self._admissions: dict[str, Admission] = {}
        self._nursery: trio.Nursery | None = None
        self._going = trio.Event()
        self._following = trio.CancelScope()
        self._changed = trio.Event()

    @property
    def waits(self) -> frozenset[str]:
        """The methods whose calls wait for a workflow's end. Nothing is lost if such a call is sent again."""
        return frozenset(
            m.label for method in self._durable.values() for m in (method.spec, method.result.spec)
        )

    @property
    def in_steps(self) -> bool:
        """Whether a step runs."""
        return any(execution.in_step for execution in self._executions.values())

    # calls -----------------------------------------------------------------------------------------------------------

    def has(self, label: str) -> bool:
        """Whether calls of that method are about a workflow."""
        return any(method.spec.label == label for method in self._durable)

    def served(self, method: Method, handler: Callable[..., Any]) -> Callable[..., Any]:
        """What a call of a method runs: for durable ones, what begins, awaits or ends a workflow."""
        durable = self._durable.get(method)
        if durable is None:
            return handler
        spec = durable.spec

        async def call(*args: Any, **kwargs: Any) -> Any:
            id = await self._begin(spec, Start(), spec.arguments(*args, **kwargs))
            return await self._result(spec, id)

        async def begin(workflow: Start, *args: Any, **kwargs: Any) -> str:
            return await self._begin(spec, workflow, spec.arguments(*args, **kwargs))

        async def result(id: str) -> Any:
            return await self._result(spec, id)

        async def cancel(id: str) -> None:
            await self._cancel(spec, id)

        if method is durable:
            return call
        if method is durable.begin:
            return begin
        return result if method is durable.result else cancel

    async def _begin(self, spec: MethodSpec, start: Start, arguments: msgspec.Struct) -> str:
        call = current()
        if call.transaction is not None:
            raise BadRequest(
                f"{spec.label} under a transaction", "a call of its own", "a part of a transaction"
            )
        row = self._row(spec, start, encode(arguments), call)
        # Sent again, a call that gave no id finds by itself the one that was made up for it.
        nameless = not start.id and call.key is None and call.request
        origin = _origin.pack(_BEGUN, self._boot, call.client, call.badge, call.request) if nameless else b""
        writes = [Write(open_key(row.name), encode(row))]
        expects: list[Expect | Range] = [Expect(open_key(row.name), 0), Expect(done_key(row.name), 0)]
        if row.deduplication:
            key = unique_key(row)
            writes.append(Write(key, row.name.encode()))
            expects.append(Expect(key, 0))
        try:
            outcome = await self._state.commit(
                writes, expects, origin, row.id.encode() if origin else b"", f"{row.method} {row.id}, begun"
            )
        except Conflict:
            found = await self._look_up(row.name)
            if found is None:
                raise BadRequest(
                    f"{spec.label} in queue {row.queue!r}",
                    f"no other workflow with the deduplication key {row.deduplication!r}",
                    "one that has not ended",
                ) from None
            known, _ = found
            # One whose arguments were not kept was begun with such ones, as far as anybody knows.
            if known.method != row.method or known.arguments not in (b"", row.arguments):
                raise BadRequest(
                    f"{spec.label}, workflow {row.id!r}",
                    "an id that is free, or the method and arguments that it was begun with",
                    "another method" if known.method != row.method else "other arguments",
                ) from None
            if known.token == row.token:
                await self._look_again(row.name)
        else:
            if outcome.repeated:
                first = (outcome.reply or b"").decode()
                await self._look_again(name_of(row.badge, first))
                return first
            self._meet(row, outcome.revision, fresh=row.runs == 1)
        return row.id

    def _row(self, spec: MethodSpec, start: Start, arguments: bytes, call: Call) -> WorkflowRow:
        if start.id:
            id = named(f"{spec.label}: id", start.id)
        elif call.key is not None:
            id = f"step-{call.key.hex()}"
        else:
            id = f"call-{call.new_id().hex()}"
        if start.queue not in self._queues:
            raise NotFound.among("queue", start.queue, filter(None, self._queues))
        if not 0 <= start.delay <= LONGEST:
            raise BadRequest(
                f"{spec.label}: delay", f"seconds, 0 to {LONGEST:g} (ten years)", repr(start.delay)
            )
        now = self._time.now()
        at_once = not start.queue and not start.delay
        return WorkflowRow(
            id=id,
            badge=call.badge,
            method=spec.label,
            arguments=arguments,
            status="running" if at_once else "queued",
            version=self._version,
            token=call.new_id(),
            begun=now,
            rights=tuple(sorted(call.rights)),
            trace=call.trace,
            executor=self._executor,
            runs=1 if at_once else 0,
            queue=start.queue,
            priority=start.priority,
            due=now + start.delay,
            deduplication=named(f"{spec.label}: deduplicate", start.deduplicate, empty=True),
            started=now if at_once else 0.0,
        )

    async def _result(self, spec: MethodSpec, id: str) -> Any:
        name = name_of(current().badge, id)
        waiter: Deferred[WorkflowRow] = Deferred()
        self._waiters[name].append(waiter)
        try:
            found = await self._look_up(name)
            if found is None:
                raise NotFound("workflow", id, see="atoll flow ls")
            row, _ = found
            if row.method != spec.label:
                raise BadRequest(f"the result of workflow {id!r}", f"a workflow of {spec.label}", row.method)
            if row.status not in ENDED:
                row = await settled(waiter)
        finally:
            with suppress(ValueError):
                self._waiters[name].remove(waiter)
            if not self._waiters[name]:
                del self._waiters[name]
        if row.status == "cancelled":
            raise WorkflowCancelled(id)
        if row.fault is not None:
            raise decode_error(row.fault, spec)
        return msgspec.msgpack.decode(row.reply or b"\xc0", type=spec.result)

    async def _cancel(self, spec: MethodSpec, id: str) -> None:
        name = name_of(current().badge, id)
        while True:
            item = await self._state.get(open_key(name))
            if item is None or item.value is None:
                if await self._look_up(name) is None:
                    raise NotFound("workflow", id, see="atoll flow ls")
                return
            row = workflow_of(item.value)
            if row.method != spec.label:
                raise BadRequest(f"cancelling workflow {id!r}", f"a workflow of {spec.label}", row.method)
            ended, writes = ending(row, "cancelled", self._time.now(), self._executor)
            expects: list[Expect | Range] = [Expect(open_key(name), item.revision)]
            with suppress(Conflict):
                outcome = await persistently(
                    partial(self._state.commit, writes, expects, note=f"{row.method} {id}, cancelled")
                )
                self._end(ended, outcome.revision)
                return

    async def _look_up(self, name: str) -> tuple[WorkflowRow, int] | None:
        """A workflow as its row has it, whether it has ended or not, and the row's revision."""
        for key in (open_key(name), done_key(name), open_key(name)):
            item = await self._state.get(key)
            if item is not None and item.value is not None:
                return workflow_of(item.value), item.revision
        return None

    # life ------------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Workflows run between `go_on` and `pause`."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                with trio.CancelScope() as self._following:
                    await self._going.wait()
                    try:
                        await self._follow()
                    except* AtollError as faults:
                        Log().warning("workflows wait for the store", reason=str(faults.exceptions[0]))
                        await trio.sleep(FIRST_PAUSE)

    def go_on(self) -> None:
        """The server takes calls from now on."""
        self._going.set()

    def pause(self) -> None:
        """The server takes no calls for now, and perhaps never again: no further step is run here, and what is found at
        `go_on` is found anew."""
        self._going = trio.Event()
        self._following.cancel()
        self._open.clear()
        self._admissions.clear()
        for execution in self._executions.values():
            execution.stop(at_once=False)

    async def _follow(self) -> None:
        """What is open, then what changes."""
        if not self._admissions:
            self._admissions = {name: await self._admission(name) for name in self._queues}
        revision = await self._scan()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._admit)
            if self._kept != math.inf:
                nursery.start_soon(forget, self._state, self._time, self._kept)
            async with self._state.watch(revision, OPEN) as changes:  # it is left wherever this is
                async for change in changes:
                    for item in change.items:
                        await self._arrive(item)
            nursery.cancel_scope.cancel()

    async def _scan(self) -> int:
        """Meet all that is open. The revision from which on the feed tells more."""
        there: set[str] = set()
        start, revision = OPEN, 0
        while True:
            page = await self._state.range(start, after_prefix(OPEN), PAGE)
            revision = revision or page.revision
            for item in page.items:
                there.add(name_in(item.key))
                self._meet(workflow_of(item.value or b""), item.revision)
            if not page.more:
                break
            start = page.items[-1].key + b"\0"
        for name in dict.fromkeys((*self._open, *self._waiters)):
            if name not in there:
                await self._look_again(name)
        return revision

    async def _arrive(self, item: Item) -> None:
        """What the feed tells, which may be behind what this process knows: of a workflow that it knows nothing of, only the
        store can say whether it has ended meanwhile."""
        name = name_in(item.key)
        if item.value is None:
            await self._gone(name)
        elif name in self._open:
            self._meet(workflow_of(item.value), item.revision)
        else:
            await self._look_again(name)

    async def _look_again(self, name: str) -> None:
        item = await self._state.get(open_key(name))
        if item is None or item.value is None:
            await self._gone(name)
        elif self._meet(workflow_of(item.value), item.revision) is False:
            self._act(name)

    async def _surely_look_again(self, name: str) -> None:
        """In a task that nobody waits for, whose failure would end the server."""
        await persistently(partial(self._look_again, name), (AtollError,))

    def _meet(self, row: WorkflowRow, revision: int, *, fresh: bool = False) -> bool:
        """A row as it stands. Whether it is news. Before this process goes on none is: what is there then the scan meets.
        `fresh`: this process has just written it, and nothing of it has run."""
        known = self._open.get(row.name)
        if known is not None and known[1] >= revision:
            return False
        if self._going.is_set() and self._admissions:
            self._open[row.name] = row, revision
            self._act(row.name, fresh=fresh)
        return True

    def _act(self, name: str, *, fresh: bool = False) -> None:
        """Bring about what the row says."""
        row, revision = self._open[name]
        admission = self._admissions.get(row.queue)
        if row.status == "running" and admission is not None:
            admission.runs(name)
        elif row.status in ("waiting", "parked"):
            self._release(name)  # whoever tells of it: its queue may count it
        execution = self._executions.get(name)
        if execution is not None:
            if execution.revision != revision:
                execution.stop(at_once=True)
            return  # at its end the row is looked at again
        if row.status == "queued" and admission is not None:
            now = self._time.now()
            admission.add(Waiting(row.priority, revision, name), min(row.due, now + row.due - row.begun))
            self._changed.set()
        elif row.status == "running" and row.executor == self._executor:
            self._execute(row, revision, fresh=fresh)
        elif row.status in ("queued", "running", "waiting"):
            self._start(self._claim, name)

    def _start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """As nobody's call: a task has the context of the one that starts it, and a workflow outlives the deadline of
        the call by which it was begun."""
        assert self._nursery is not None
        with in_hand(None):
            self._nursery.start_soon(task, *args)

    # running ---------------------------------------------------------------------------------------------------------

    async def _claim(self, name: str) -> None:
        """Write that it runs here; or why it does not."""
        row, revision = self._open.get(name, (None, 0))
        if row is None or (row.status == "running" and row.executor == self._executor):
            return
        hindrance = self._hindrance(row)
        if hindrance:
            if (row.status, row.reason) == ("waiting", hindrance):
                return
            claimed = msgspec.structs.replace(
                row, status="waiting", reason=hindrance, executor=self._executor
            )
        elif row.status == "waiting" and row.queue in self._queues and row.queue:
            claimed = msgspec.structs.replace(row, status="queued", reason="", executor=self._executor)
        elif row.runs >= RUNS_MOST and (times := row.fruitless(await self._last_run(name))) >= RUNS_MOST:
            reason = f"it was taken up {times} times and nothing came of it: it may be what ends its server"
            claimed = msgspec.structs.replace(row, status="parked", reason=reason, executor=self._executor)
        else:
            claimed = msgspec.structs.replace(
                row,
                status="running",
                reason="",
                executor=self._executor,
                runs=row.runs + 1,
                version=row.version or self._version,
                started=row.started or self._time.now(),
            )
        more: list[Write] = []
        admission = self._admissions.get(row.queue)
        if row.status == "queued" and admission is not None and claimed.status != "running":
            admission.withdraw(row.name)
            self._changed.set()
        elif row.status == "queued" and admission is not None and admission.queue.rate is not None:
            more.append(Write(queue_key(row.queue), encode(QueueRow(starts=admission.starts()))))
        await self._rewrite(claimed, revision, more)

    async def _last_run(self, name: str) -> int:
        """The run that wrote its last step; 0 where it has none."""
        start, end = steps_between(name)
        asked = partial(self._state.range, start, end, 1, reverse=True)
        page = await persistently(asked, (AtollError,))
        return max((step_of(item.value).run for item in page.items if item.value is not None), default=0)

    async def _rewrite(self, row: WorkflowRow, revision: int, more: Iterable[Write] = ()) -> None:
        """Replace a row that is at a revision. If it is not, see what it is."""
        writes = [Write(open_key(row.name), encode(row)), *more]
        expects: list[Expect | Range] = [Expect(open_key(row.name), revision)]
        note = f"{row.method} {row.id}, {row.status}"
        try:
            outcome = await persistently(partial(self._state.commit, writes, expects, note=note))
        except Conflict:
            await self._surely_look_again(row.name)
            return
        except AtollError as fault:
            Log().error("a workflow was left where it is", workflow=row.name, reason=str(fault))
            await trio.sleep(LONGEST_PAUSE)
            for admission in self._admissions.values():
                admission.stays(row.name)
            await self._surely_look_again(row.name)
            return
        self._meet(row, outcome.revision, fresh=row.runs == 1)

    def _hindrance(self, row: WorkflowRow) -> str:
        """Why this version of the server does not go on with it; empty: it does."""
        if row.method not in self._handlers:
            return f"this version of the server has no durable method {row.method}"
        if row.version and row.status != "running" and row.queue not in self._queues:
            return (
                f"this version of the server has no queue {row.queue!r}: swap back, or let it go on outside of any queue "
                f"with `atoll flow resume`"
            )
        if row.version in ("", self._version) or self._may_go_on(row.method, row.version):
            return ""
        return (
            f"version {row.version} of the server has begun it, and version {self._version} does not say that it goes on "
            f"with that: swap back, or let it go on with `atoll flow resume`"
        )

    def _execute(self, row: WorkflowRow, revision: int, *, fresh: bool) -> None:
        spec, handler = self._handlers[row.method]
        execution = Execution(self._state, self._time, row, revision, spec, fresh=fresh)
        self._executions[row.name] = execution
        self._start(self._run, execution, handler)

    async def _run(self, execution: Execution, handler: Handler) -> None:
        row = execution.row
        ended = None
        try:
            ended = await execution.run(handler)
        except AtollError as fault:
            # Its rows cannot be read or written, for a reason that does not go away by itself.
            Log().error("a workflow was left where it is", workflow=row.name, reason=str(fault))
            await trio.sleep(LONGEST_PAUSE)
        finally:
            del self._executions[row.name]
        if ended is not None and self._end(*ended):
            return
        if ended is None and execution.parked:
            Log().error("a workflow is parked", workflow=row.name, reason=execution.parked)
            parked = msgspec.structs.replace(row, status="parked", reason=execution.parked)
            await self._rewrite(parked, execution.revision)
        elif self._going.is_set():
            await self._surely_look_again(row.name)

    def _end(self, row: WorkflowRow, revision: int) -> bool:
        """It has ended, durably, at a revision. False: what is known of it is newer, for it was resumed since."""
        if row.name in self._open and self._open[row.name][1] > revision:
            return False
        for waiter in self._leave(row.name):
            waiter.complete(row)
        return True

    def _leave(self, name: str) -> list[Deferred[WorkflowRow]]:
        """It is open no more. Who waits for it."""
        self._open.pop(name, None)
        execution = self._executions.get(name)
        if execution is not None:
            execution.stop(at_once=True)
        self._release(name)
        return self._waiters.pop(name, [])

    def _release(self, name: str) -> None:
        for admission in self._admissions.values():
            admission.gone(name)
        self._changed.set()

    async def _gone(self, name: str) -> None:
        """It is not open any more; whoever ended it."""
        if name not in self._open and name not in self._executions and name not in self._waiters:
            return
        found = await self._look_up(name)
        if found is None:  # deleted by hand
            for waiter in self._leave(name):
                waiter.fail(NotFound("workflow", name.partition("/")[2], see="atoll flow ls"))
        elif found[0].status in ENDED:
            self._end(*found)
        # Else it was resumed meanwhile, of which the feed tells.

    # queues ----------------------------------------------------------------------------------------------------------

    async def _admission(self, name: str) -> Admission:
        queue, starts = self._queues[name], list[float]()
        if queue.rate is not None:
            item = await self._state.get(queue_key(name))
            if item is not None and item.value is not None:
                now = self._time.now()
                starts = [min(start, now) for start in queue_of(item.value).starts]
        return Admission(queue, starts)

    async def _admit(self) -> None:
        """Start what its queue lets start, whenever something has changed or it is time."""
        while True:
            self._changed = trio.Event()
            now, wakes = self._time.now(), math.inf
            for admission in self._admissions.values():
                while (name := admission.next(now)) is not None:
                    self._start(self._claim, name)
                wakes = min(wakes, admission.wakes())
            with trio.move_on_after(max(0.0, wakes - now)):
                await self._changed.wait()
