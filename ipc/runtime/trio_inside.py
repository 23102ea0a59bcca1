"""What the receive loop must know of trio: is anything runnable, what is its epoll descriptor, when is its next deadline;
and how to run a step of a task without a turn of trio's.

A serving task sleeps inside the C core, in an epoll that also holds trio's own. It may only do so while no other task can
run. trio's run queue cannot tell (tasks of the batch in progress have left it), so an instrument keeps book: a task that was
scheduled and has not stepped is runnable. Nor does anything tell that a deadline was set (`_told_of_deadlines`). The private
things are trio's deadlines and its epoll descriptor; without that `descriptor` is None, and the loop sleeps in trio.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import Context
from typing import Any

import outcome
import trio

from atoll.ipc import clock

try:
    from trio._core._run import GLOBAL_RUN_CONTEXT, Deadlines
    from trio._core._traps import CancelShieldedCheckpoint, WaitTaskRescheduled

    STEPS = {"_abort_func", "_cancel_points", "_schedule_points"} <= {
        field.name for field in trio.lowlevel.Task.__attrs_attrs__
    } and hasattr(trio.lowlevel.Task, "_attempt_delivery_of_any_pending_cancel")
except (ImportError, AttributeError):
    STEPS = False

NANOSECONDS = 1_000_000_000
FAR = 3600.0


class Runnable(trio.abc.Instrument):
    """The tasks that are scheduled and have not stepped. `some` is called when there is a first one.

    A set and not a number: tasks that were scheduled before the instrument was added step without having been seen.
    """

    def __init__(self, some: Callable[[], None]) -> None:
        self._tasks: set[trio.lowlevel.Task] = set()
        self._some = some

    @property
    def any(self) -> bool:
        return bool(self._tasks)

    @contextmanager
    def watched(self, *, deadlines: bool) -> Iterator[None]:
        """Keep book. `deadlines`: who sleeps in C is told of a next one, too; who sleeps in trio is woken for it."""
        trio.lowlevel.add_instrument(self)
        try:
            with _told_of_deadlines(self._some) if deadlines else nullcontext():
                yield
        finally:
            trio.lowlevel.remove_instrument(self)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if not self._tasks:
            self._some()
        self._tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)


def descriptor() -> int | None:
    """trio's epoll descriptor, or None if this trio keeps it elsewhere."""
    try:
        return int(GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (NameError, AttributeError):
        return None


@contextmanager
def _told_of_deadlines(earlier: Callable[[], None]) -> Iterator[None]:
    """Have `earlier` called when a deadline is set that is the next one now. No task need be scheduled for that: a handler
    that runs inline may set one of a task that waits, and whoever sleeps in C would not know of it."""
    try:
        runner = GLOBAL_RUN_CONTEXT.runner
        before = runner.deadlines

        class Told(Deadlines):
            def add(self, deadline: float, cancel_scope: trio.CancelScope) -> None:
                super().add(deadline, cancel_scope)
                if self._heap[0][2] is cancel_scope:
                    earlier()

        runner.deadlines = Told(before._heap, before._active)
    except (NameError, AttributeError, TypeError):
        yield
        return
    try:
        yield
    finally:
        runner.deadlines = Deadlines(runner.deadlines._heap, runner.deadlines._active)


def seconds_to_deadline() -> float:
    """Until trio's next deadline; infinite if there is none."""
    return float(trio.lowlevel.current_statistics().seconds_to_next_deadline)


def moment_in(seconds: float) -> int:
    """A moment of CLOCK_MONOTONIC in ns, `FAR` ahead at most: a caller's deadline may lie further than 64 bits reach, and
    who was woken too early looks again."""
    return max(2, clock.monotonic_ns() + int(min(seconds, FAR) * NANOSECONDS))


# steps ----------------------------------------------------------------------------------------------------------------
#
# A parked task is one that waits in `wait_task_rescheduled`. It is not in any queue of trio's, so whoever has it may run a
# coroutine as if it were its: trio's primitives ask who the current task is, note that one and yield to trio's loop.


def begin(parked: trio.lowlevel.Task, context: Context, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in the place of a parked task until it first waits. Gives what it yields to trio's loop then: the
    parked task has to `go_on` with it, before anything else happens. Raises what the coroutine raises, StopIteration with
    its value if it is over."""
    running = GLOBAL_RUN_CONTEXT.task
    GLOBAL_RUN_CONTEXT.task = parked
    parked.context = context
    try:
        trap = context.run(work.send, None)
        while trap is not CancelShieldedCheckpoint and type(trap) is not WaitTaskRescheduled:
            error = TypeError(f"a handler waits for something that is not trio's: it yielded {trap!r}")
            trap = context.run(work.throw, error)
        return trap
    finally:
        GLOBAL_RUN_CONTEXT.task = running


def go_on(parked: trio.lowlevel.Task, handed: Any) -> None:
    """A parked task is handed something and goes on with it, at once, until it yields to trio's loop: what that makes of it
    is done here."""
    task: Any = parked
    running = GLOBAL_RUN_CONTEXT.task
    GLOBAL_RUN_CONTEXT.task = task
    task._abort_func = None
    try:
        trap = task.context.run(task.coro.send, outcome.Value(handed))
        task._schedule_points += 1
        if trap is CancelShieldedCheckpoint:
            trio.lowlevel.reschedule(task)
        else:
            task._cancel_points += 1
            task._abort_func = trap.abort_func
            task._attempt_delivery_of_any_pending_cancel()
    finally:
        GLOBAL_RUN_CONTEXT.task = running


def still_parked(parked: trio.lowlevel.Task, abort: Callable[[Any], trio.lowlevel.Abort]) -> None:
    """It was not needed. If it was cancelled meanwhile, `abort` hears of it now."""
    task: Any = parked
    task._abort_func = abort
    task._attempt_delivery_of_any_pending_cancel()


@types.coroutine
def the_rest(work: Coroutine[Any, Any, Any], trap: Any) -> Generator[Any, Any, Any]:
    """Of a coroutine that has begun elsewhere and has yielded `trap`: its result."""
    while True:
        try:
            try:
                told = yield trap
            except BaseException as error:  # whatever it is, it is the coroutine's
                trap = work.throw(error)
            else:
                trap = work.send(told)
        except StopIteration as over:
            return over.value
