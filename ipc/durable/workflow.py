"""A workflow as its handler has it: steps, timers, and time and chance that are the same when it is run again.

    @Ledger.transfer.serve
    async def transfer(self, flow: Workflow, source: str, target: str, amount: int) -> Receipt:
        await flow.step(self.take, source, amount)
        await flow.sleep(60)
        return await flow.step(self.give, target, amount)

After a crash the handler is run again from its first line, and what its steps gave is answered from their rows, up to
the step that had not committed. So the handler itself only decides; whatever else it does belongs into steps. It must ask
for the same steps in the same order as before: where it does not, it is parked, and nothing of it runs wrong.

A step's effects in the store are committed with the row that says that it ran, so they happen once. The calls that it
makes bear a key made of the workflow and the step, by which a `once` method of another server happens once, too. What it
does outside may happen again after a crash: there `this_step().idempotency_key` tells the other side what it has had
already.
"""

import inspect
import random
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, ParamSpec, Protocol, TypeVar, get_args, get_origin, get_type_hints, overload

import msgspec
import trio
from msgspec import Struct

from atoll.ipc import chance, clock
from atoll.ipc.context import Call, Clock, Fields, SystemClock, current_or_none, in_hand
from atoll.ipc.deferred import Deferred
from atoll.ipc.dispatch import as_reply
from atoll.ipc.errors import Aborted, BadRequest, Conflict, PeerFault, TooLarge
from atoll.ipc.errors import decode as decode_error
from atoll.ipc.errors import encode as encode_error
from atoll.ipc.future import wait_for
from atoll.ipc.interface import Interface
from atoll.ipc.method import MethodSpec
from atoll.ipc.participation import TakingPart
from atoll.ipc.proxy import BoundCall
from atoll.ipc.transaction import shared
from atoll.ipc.transport import Options

from .effects import Effects
from .rows import LONGEST, StepRow, WorkflowRow, encode

P = ParamSpec("P")
R = TypeVar("R")
I = TypeVar("I", bound=Interface)  # noqa: E741

MEETINGS: Final = 64
"""So often a step that meets others' writes is run again before that counts as a failed attempt."""
FAULT_MOST: Final = 512 << 10
"""Bytes of a step's error that are recorded."""
_MEETING_PAUSE: Final = 0.002
_ordinal = struct.Struct(">I")


class Retry(Struct, frozen=True, kw_only=True):
    """When a step that has failed is tried again. Each attempt is recorded: a crash starts no count anew."""

    attempts: int = 10
    """In all."""
    pause: float = 0.1
    """Seconds before the second attempt."""
    factor: float = 2.0
    """What the pause is multiplied by each time."""
    longest: float = 60.0
    """Seconds of the longest pause."""
    on: tuple[type[Exception], ...] = (PeerFault,)
    """The errors after which to try again; any other is the step's outcome at once."""

    def after(self, attempt: int) -> float:
        """Seconds between that attempt and the next."""
        try:
            return min(self.longest, self.pause * self.factor ** (attempt - 1))
        except OverflowError:
            return self.longest if self.pause else 0.0


class Run(Protocol):
    """What runs a workflow, and keeps its rows."""

    row: WorkflowRow
    spec: MethodSpec

    def recorded(self, number: int) -> StepRow | None:
        """What is known of a step."""
        ...

    async def gate(self) -> None:
        """Between two steps: comes back only if the workflow may go on."""
        ...

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    async def wait(self, number: int, step: StepRow) -> None:
        """Until what the step is waiting for; the workflow may be stopped meanwhile."""
        ...

    async def record(self, number: int, step: StepRow, effects: Effects | None) -> StepRow:
        """Commit a step. What was recorded of it in the end: somebody may have been first. Raises `Conflict` and
        `Aborted` where the effects must be had anew."""
        ...

    async def park(self, reason: str) -> None:
        """Stop here until somebody has looked at it. Does not come back."""
        ...

    def effects(self) -> Effects:
        """For one attempt of a step."""
        ...


class Between(Call):
    """The call in hand between the steps of a workflow: its time and chance are the same at each run."""

    __slots__ = ()

    @property
    def transaction(self) -> bytes | None:
        raise BadRequest(
            f"{self.method}: reading or writing rows between steps",
            "to have it done in a step (`await flow.step(self.method_that_does_it)`)",
            "it in the workflow itself, which is run again after a crash",
        )

    def inherit(self, options: Options, method: MethodSpec) -> Options:
        raise BadRequest(
            f"{self.method}: a call of a server between steps",
            "to have it made in a step (`await flow.step(self.server.method, ..)`)",
            "it in the workflow itself, which is run again after a crash",
        )


class Step(TakingPart):
    """The call in hand within a step."""

    __slots__ = ("_calls", "_effects", "attempt", "idempotency_key", "number")

    def __init__(
        self, fields: Fields, clock: Clock, effects: Effects, token: bytes, number: int, attempt: int
    ) -> None:
        super().__init__(fields, clock, effects)
        self._effects = effects
        self.number = number
        self.attempt = attempt
        """1 for the first; more where it has failed before."""
        self.idempotency_key = blake2b(token + _ordinal.pack(number), digest_size=16).hexdigest()
        """The step's idempotency key, the same in each attempt and after each crash: for effects outside of the node."""
        self._calls: defaultdict[str, int] = defaultdict(int)
        """So far, by method."""

    def share(self, proxy: I) -> I:
        """The proxy with calls that take part in the step's transaction: what the server writes then is committed with
        the step, or not at all. See `Transaction.share`."""
        return shared(self._effects, proxy)

    def inherit(self, options: Options, method: MethodSpec) -> Options:
        """Each call of a step has a key of its own, by the order of the calls of its method: how many others are made
        in between, to read a range page by page, may differ when the step is run again. One that has its key is no other:
        it is asked again."""
        if options.key is not None:
            return super().inherit(options, method)
        number = self._calls[method.label]
        self._calls[method.label] = number + 1
        named = f"{self.idempotency_key} {method.label}".encode()
        key = blake2b(named + _ordinal.pack(number), digest_size=12).digest()
        return msgspec.structs.replace(super().inherit(options, method), key=key)


def this_step() -> Step:
    """The step in hand. LookupError outside of one."""
    call = current_or_none()
    if not isinstance(call, Step):
        raise LookupError("no step is in hand: this_step() is for what `flow.step` runs")
    return call


class Recorded:
    """The time of a workflow between its steps: when the last of them ended. Seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return clock.monotonic()


class Workflow:
    """See the module."""

    def __init__(self, run: Run, time: Recorded, retry: Retry | None = None, name: str = "") -> None:
        self._run = run
        self._time = time
        self._retry = retry or Retry()
        self._name = name
        self._place = Place()

    @property
    def id(self) -> str:
        return self._run.row.id

    @property
    def steps(self) -> int:
        """How many steps were asked for so far."""
        return self._place.number

    def now(self) -> float:
        """Seconds since the epoch when the last step ended: the same at each run."""
        return self._time.now

    def with_(self, *, retry: Retry | None = None, name: str = "") -> "Workflow":
        """The same workflow with options for its next steps. `name`: under which a step is recorded, instead of its
        function's."""
        made = Workflow(self._run, self._time, retry or self._retry, name or self._name)
        made._place = self._place
        return made

    @overload
    async def step(self, function: Callable[P, Deferred[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def step(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Runs it, records what it gave, and gives that; or gives what is recorded. One step at a time.

        `function`: plain or async, with a result type; or a method of a proxy. What it raises is recorded as well, once
        its retries are spent: failures that the interface declares as they are, bugs as `InternalFault`.
        """
        run, decode = self._run, _decoder(_result_of(function))
        name = self._name or _name_of(function)
        with self._place.taken(name) as number:
            known = run.recorded(number)
            if known is not None:
                await self._same(number, known, name, timer=False)
            if known is None or known.state == "trying":
                known = await self._work(number, name, known, function, args, kwargs)
            self._time.now = known.ended
        if known.fault is not None:
            raise decode_error(known.fault, run.spec)
        return decode(known.reply or b"\xc0")

    async def sleep(self, seconds: float) -> None:
        """A timer that goes on over crashes and restarts: it ends when so much time has passed since it was set."""
        name, run = "sleep", self._run
        with self._place.taken(name) as number:
            known = run.recorded(number)
            if known is None:
                if not seconds <= LONGEST:
                    raise BadRequest("flow.sleep", f"{LONGEST:g} seconds (ten years) at most", repr(seconds))
                await run.gate()
                now = run.now()
                known = StepRow(name=name, state="sleeping", run=run.row.runs, ended=now, until=now + seconds)
                known = await run.record(number, known, None)
            else:
                await self._same(number, known, name, timer=True)
            await run.wait(number, known)
            self._time.now = max(self._time.now, known.until)

    async def _same(self, number: int, known: StepRow, name: str, *, timer: bool) -> None:
        """Whether the step that is recorded is the one that is asked for. Else the workflow stops here."""
        if known.name != name or (known.state == "sleeping") != timer:
            await self._run.park(
                f"step {number}: expected {known.name!r}, as it was recorded, found {name!r}: "
                f"the workflow does not ask for the same steps as before"
            )

    async def _work(
        self,
        number: int,
        name: str,
        known: StepRow | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> StepRow:
        """Attempts, until one is recorded as the outcome."""
        run, retry = self._run, self._retry
        attempt = 1 if known is None else known.attempts + 1
        if known is not None:
            await run.wait(number, known)
        meetings = 0
        while True:
            await run.gate()
            effects = run.effects()
            try:
                reply = encode(await self._attempt(number, attempt, name, effects, function, args, kwargs))
                return await run.record(number, self._row(name, "done", attempt, reply=reply), effects)
            except (Conflict, Aborted) as error:
                # Others wrote what it had read, or the store was restarted under its transaction.
                effects.forget()
                meetings += 1
                if meetings < MEETINGS:
                    await trio.sleep(
                        _MEETING_PAUSE * min(meetings, 25) * random.Random(chance.token(8)).uniform(0.5, 1.5)
                    )
                    continue
                problem: Exception = error
            except Exception as error:
                effects.forget()
                problem = error
            except BaseException:
                effects.forget()
                raise
            await trio.lowlevel.checkpoint()  # what a cancelled step raises is no outcome
            fault = encode_error(as_reply(run.spec, problem))
            if (
                len(fault) > FAULT_MOST
            ):  # no row would hold it, and the workflow must not go on with what is none
                what = f"{run.row.method}, step {number}: its error"
                fault = encode_error(TooLarge(what, len(fault), FAULT_MOST, do="say less in it"))
            if attempt >= retry.attempts or not isinstance(problem, retry.on):
                return await run.record(number, self._row(name, "failed", attempt, fault=fault), None)
            trying = self._row(name, "trying", attempt, fault=fault)
            # From when it ended by the workflow's time, which a clock that was set back may be behind.
            until = trying.ended + retry.after(attempt)
            known = await run.record(number, msgspec.structs.replace(trying, until=until), None)
            if known.state != "trying":
                return known  # it was committed, and only the answer was lost
            await run.wait(number, known)
            attempt, meetings = attempt + 1, 0

    def _row(self, name: str, state: Any, attempt: int, **more: Any) -> StepRow:
        now = max(self._run.now(), self._time.now)
        return StepRow(name=name, state=state, run=self._run.row.runs, ended=now, attempts=attempt, **more)

    async def _attempt(
        self,
        number: int,
        attempt: int,
        name: str,
        effects: Effects,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        row = self._run.row
        fields = Fields(
            method=f"{row.method}, step {number} ({name})",
            badge=row.badge,
            rights=frozenset(row.rights),
            trace=row.trace,
        )
        with in_hand(Step(fields, SystemClock(), effects, row.token, number, attempt)):
            given = function(*args, **kwargs)
            if given.__class__ is Deferred:
                await wait_for(lambda told: given.react(lambda _: told(), lambda _: told()))
                return given.result()
            return await given if inspect.isawaitable(given) else given


class Place:
    """How far a workflow has come, for all of its faces."""

    def __init__(self) -> None:
        self.number = 0
        self._busy = ""

    def taken(self, name: str) -> "Place":
        """The next step's number, while it runs."""
        if self._busy:
            raise BadRequest(
                f"step {name!r}", "one step of a workflow at a time", f"{self._busy!r} still runs"
            )
        self._busy = name
        return self

    def __enter__(self) -> int:
        self.number += 1
        return self.number

    def __exit__(self, *_: object) -> None:
        self._busy = ""


def _name_of(function: Callable[..., Any]) -> str:
    return function.spec.label if isinstance(function, BoundCall) else function.__name__


def _result_of(function: Callable[..., Any]) -> Any:
    if isinstance(function, BoundCall):
        return function.spec.result
    return _annotated(getattr(function, "__func__", function))


@lru_cache(maxsize=1024)
def _annotated(function: Callable[..., Any]) -> Any:
    if not inspect.isfunction(function):
        raise BadRequest("flow.step", "a function, or a method of a server or a proxy", repr(function))
    hints = get_type_hints(function, include_extras=True)
    if "return" not in hints:
        raise BadRequest(
            f"the step {function.__name__!r}",
            "a result type (`-> None` if it has none)",
            "none",
        )
    kind = hints["return"]
    if get_origin(kind) is Deferred:
        return get_args(kind)[0]
    if get_origin(kind) is not None and not inspect.iscoroutinefunction(function):
        origin = get_origin(kind)
        if isinstance(origin, type) and issubclass(origin, Awaitable):
            return get_args(kind)[-1]
    return kind


@lru_cache(maxsize=1024)
def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(kind).decode
