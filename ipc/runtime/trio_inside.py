"""What the receive loop must know of trio: is anything runnable, what is its epoll descriptor, when is its next deadline.

A serving task sleeps inside the C core, in an epoll that also holds trio's own. It may only do so while no other task can
run. trio's run queue cannot tell (tasks of the batch in progress have left it), so an instrument keeps book: a task that was
scheduled and has not stepped is runnable. The one private thing is trio's epoll descriptor; without it `descriptor`
is None, and the loop sleeps in trio.
"""

from collections.abc import Callable

import trio

NANOSECONDS = 1_000_000_000


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

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if not self._tasks:
            self._some()
        self._tasks.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)


def descriptor() -> int | None:
    """trio's epoll descriptor, or None if this trio keeps it elsewhere."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        return int(GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
    except (ImportError, AttributeError):
        return None


def seconds_to_deadline() -> float:
    """Until trio's next deadline; infinite if there is none."""
    return float(trio.lowlevel.current_statistics().seconds_to_next_deadline)
