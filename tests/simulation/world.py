"""A world in one thread: processes that move one step at a time, a clock that stands while they do, and one seed.

A *process* is an event loop of its own: a trio run that is stepped from outside, one round of its runnable tasks a step.
Which one steps next, how much time passes, who stands still and who is killed is drawn from the seed. So a world with one
seed takes one way, and its way is told by a hash over all that happened (`note`).

Code inside a step can be interrupted at the points that simulated mechanisms pass (`pass_point`): others then move, nested
in its stack, before it goes on, or it never goes on: then it was killed right there, and the rest of the world's life is
lived above its dead frames. A killed process runs not one line more, no `finally` either, as after `kill -9`.
"""

from __future__ import annotations

import contextvars
import heapq
import itertools
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT, Runner, setup_runner, unrolled_run

from atoll.ipc import chance, clock
from atoll.ipc.context import INLINE
from atoll.ipc.errors import AtollError
from atoll.microkernel.ownership import BootRefused
from atoll.microkernel.processes import CannotConfine
from atoll.native import lib

SECOND = 1_000_000_000
BOOTED = 1_000_000 * SECOND
"""CLOCK_MONOTONIC at the beginning."""
EPOCH = 1_700_000_000.0
"""Seconds since the epoch at the beginning."""
FIRST_PID = 5_000_000
"""Above what Linux gives: /proc has none of these."""
EXPECTED = (AtollError, OSError, SystemExit, CannotConfine, BootRefused, trio.TooSlowError, trio.EndOfChannel)
"""What tasks may fail with; anything else is a defect."""
KEPT = 4000
"""Lines of the story that are kept to be told."""


class Clock(trio.abc.Clock):
    """The world's, for one process's event loop."""

    def __init__(self, world: World) -> None:
        self._world = world

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        return self._world.now / SECOND

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


class _Waits:
    """trio's look at descriptors without its epoll, so that nobody sleeps in there on its own."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        if name == "_epoll":
            raise AttributeError(name)
        return getattr(self._manager, name)


class Process:
    """One simulated process. `main` runs in an event loop of its own."""

    def __init__(self, world: World, name: str, main: Callable[..., Any], *arguments: Any) -> None:
        self.world = world
        self.name = name
        self.pid = next(world.pids)
        self.alive = True
        self.status: int | None = None
        """How it ended by itself; None for one that was killed."""
        self.error: BaseException | None = None
        self.frozen = False
        self.stalled = 0
        """It gets no time until then."""
        self.inside = False
        """One of its steps is in progress, below this one."""
        self.at_death: list[Callable[[], object]] = []
        """What its host does for it when it is gone: close its descriptors."""
        self._pulses: list[int] = []
        self._events: list[Any] = []
        self._due = 0.0
        self._steps = 0
        contextvars.Context().run(self._begin, main, arguments)

    def _begin(self, main: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        with _nowhere():
            self._runner = setup_runner(Clock(self.world), (), True, True)
            self._hooks = sys.get_asyncgen_hooks()
            self._io: Any = self._runner.io_manager
            self._runner.io_manager = _Waits(self._io)  # type: ignore[assignment]
            self._run = unrolled_run(self._runner, main, arguments, host_uses_signal_set_wakeup_fd=True)
            self._sleep(next(self._run))

    def _sleep(self, timeout: float) -> None:
        self._due = -1.0 if timeout <= 0 else self.world.now / SECOND + timeout

    @property
    def due(self) -> int:
        """When it wants to move at the latest."""
        return max(self.stalled, int(self._due * SECOND) + 1)

    def pidfd(self) -> int:
        """A descriptor that is readable once it has ended; the caller's."""
        end, pulse = os.pipe()
        if self.alive:
            self._pulses.append(pulse)
        else:
            os.close(pulse)
        return end

    def can_move(self) -> bool:
        if not self.alive or self.frozen or self.inside or self.stalled > self.world.now:
            return False
        self._events += self._io.get_events(0)
        return bool(self._events) or self._due < 0 or self.due <= self.world.now

    def step(self) -> None:
        """One round of its event loop."""
        self._steps += 1
        events, self._events = self._events, []
        self.inside = True
        with _nowhere():
            GLOBAL_RUN_CONTEXT.runner = self._runner
            sys.set_asyncgen_hooks(*self._hooks)
            try:
                self._sleep(self._run.send(events))
            except StopIteration:
                self._ended()
            finally:
                self.inside = False

    def _ended(self) -> None:
        outcome = self._runner.main_task_outcome
        self.error = getattr(outcome, "error", None)
        self.status = _status(self.error)
        self.world.buried(self, f"exited with {self.status}: {_told(self.error)}")

    def stacks(self) -> Iterator[str]:
        """Where each of its tasks stands."""
        for task in self._runner.tasks:
            where, awaited = [], task.coro
            while (frame := getattr(awaited, "cr_frame", None)) is not None:
                where.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                awaited = awaited.cr_await  # type: ignore[attr-defined]
            yield f"{self.name}: {' < '.join(reversed(where))}"

    def bury(self) -> None:
        """It moves no more, and its host tidies up after it."""
        self.alive = False
        for action in self.at_death:
            action()
        for pulse in self._pulses:
            os.close(pulse)
        self._pulses.clear()


class _nowhere:
    """No event loop is in this thread, for others to be; afterwards the one that was there is again."""

    def __enter__(self) -> None:
        self._run = dict(GLOBAL_RUN_CONTEXT.__dict__)
        self._hooks = sys.get_asyncgen_hooks()
        self._inline = INLINE.read, INLINE.call
        GLOBAL_RUN_CONTEXT.__dict__.clear()
        INLINE.read = INLINE.call = None

    def __exit__(self, *_: object) -> None:
        GLOBAL_RUN_CONTEXT.__dict__.clear()
        GLOBAL_RUN_CONTEXT.__dict__.update(self._run)
        sys.set_asyncgen_hooks(*self._hooks)
        INLINE.read, INLINE.call = self._inline


def _hear_failures(world: World) -> None:
    """A task that fails is told of before the ends of others hide it."""
    exited = Runner.task_exited

    def exits(runner: Runner, task: trio.lowlevel.Task, outcome: Any) -> None:
        error = getattr(outcome, "error", None)
        if error is not None and not isinstance(error, trio.Cancelled | BaseExceptionGroup):
            # pytest has other names for the modules of the tests: they are no part of the world's way.
            told = f"{task.name.removeprefix('tests.')}: {error!r} {_place(error)}"
            world.note(f"a task of {world.moving[-1].name} failed", told)
            if not isinstance(error, EXPECTED):
                world.wrong(f"a task of {world.moving[-1].name} failed: {told}")
        exited(runner, task, outcome)

    Runner.task_exited = exits  # type: ignore[method-assign,assignment]


def _place(error: BaseException) -> str:
    lines = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{line.name}:{line.lineno}" for line in reversed(lines))


def _status(error: BaseException | None) -> int:
    """As `zygote.run` has it: an exit inside a group of errors is a failure."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _told(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{type(error).__name__} {error}" if error is not None else "in order"


class Faults:
    """How often what goes wrong, drawn anew for each world. Chances are of one point or one step."""

    def __init__(self, chance: random.Random, *, none: bool = False) -> None:
        def some(most: float) -> float:
            return 0.0 if none or chance.random() < 0.4 else most * chance.random() ** 2

        self.killed_at_point = some(0.05)
        self.killed_at_step = some(0.005)
        self.interrupted = 0.3
        self.stalled = some(0.08)
        self.stolen = some(0.001)
        """A process gets no time for seconds."""
        self.spurious = some(0.05)
        """A ring that nobody rang."""
        self.unrung = some(0.5)
        """Who is killed had taken a `parked` word and not rung yet."""
        self.slow_disk = some(0.3)
        self.full_disk = some(0.02)
        self.failing_disk = some(0.003)
        self.unspawned = some(0.1)
        self.jump = some(0.002)
        """The wall clock is set."""
        self.kernel = chance.random() < 0.6
        """The kernel may die, too."""
        self.forge_dies = some(0.1)
        """The fork server dies while it is asked: once, and the next one answers; or twice."""
        self.unwatched = some(0.1)
        """Nobody can be told to hear what the filter of a process refuses."""
        self.off_core = some(0.1)
        """A loop is stopped between the check of a call and its handler."""
        self.ungrouped = some(0.2)
        """A control group does not take what is written into it."""


class World:
    def __init__(self, seed: int, place: str, *, tell: bool = False) -> None:
        """`place`: the folder that its files lie in, whose name is no part of its way."""
        self.seed = seed
        self._place = place.encode()
        self.chance = random.Random(seed)
        self.now = 0
        self.skew = 0.0
        """By how much the wall clock was set."""
        self.pids = itertools.count(FIRST_PID)
        self.processes: list[Process] = []
        self.faults = Faults(self.chance, none=True)
        self._dead: list[Process] = []
        """Kept: what is collected runs its `finally` after all."""
        self.watchers: list[Callable[[], list[str]]] = []
        """Asked after each step for what must not be, as sentences."""
        self.broken: list[str] = []
        """What was found, once."""
        self.over: Callable[[], bool] = lambda: False
        self.finish: Callable[[], object] = lambda: os._exit(0)
        """Ends the world; it does not return."""
        self.after_kill: Callable[[Process], object] = lambda process: None
        """What else is lost with one that is killed."""
        self.between: Callable[[], object] = lambda: None
        """What else may happen between two steps."""
        self.steps = 0
        self.killed = 0
        self.unkillable: set[str] = set()
        self.moving: list[Process] = []
        """Whose step it is, and below it those that are interrupted."""
        self.moved: Process | None = None
        """Whose step was the last one that ended."""
        self._timers: list[tuple[int, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._way = blake2b(digest_size=16)
        self._tell = tell
        self.story: list[str] = []
        self._move(BOOTED)
        self._tokens = random.Random(self.chance.random())
        clock.follow(lambda: self.now, self.wall, self.halt)
        chance.follow(self._tokens.randbytes)
        random.seed(self.chance.random())
        _hear_failures(self)
        trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
        trio._core._run._r = random.Random(self.chance.random())  # type: ignore[attr-defined]

    # time ---------------------------------------------------------------------------------------------------

    def _move(self, to: int) -> None:
        self.now = to
        lib.atoll_clock_stand(to)

    def wall(self) -> float:
        return EPOCH + (self.now - BOOTED) / SECOND + self.skew

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something then, between two steps."""
        heapq.heappush(self._timers, (self.now + int(seconds * SECOND), next(self._numbers), action))

    def halt(self, seconds: float) -> None:
        """The process that moves stands still for so long; the others do not."""
        until = self.now + int(seconds * SECOND)
        while self.now < until:
            self.turn(until)
        if self.moving and not self.moving[-1].alive:
            self._rest()

    # what happens ---------------------------------------------------------------------------------------------

    def note(self, what: str, data: bytes | str = b"") -> None:
        """Something happened: it is part of this world's way."""
        if isinstance(data, str):
            data = data.encode()
        data = data.replace(self._place, b"@")
        self._way.update(f"{self.now} {what} {len(data)} ".encode())
        self._way.update(data)
        if self._tell:
            print(f"{(self.now - BOOTED) / SECOND:.6f} {what} {data!r}", file=sys.stderr, flush=True)
        elif len(self.story) < KEPT:
            self.story.append(f"{(self.now - BOOTED) / SECOND:.6f} {what}")

    def hash(self) -> str:
        return self._way.hexdigest()

    def wrong(self, sentence: str) -> None:
        """What must not be is."""
        if len(self.broken) < 20 and sentence not in self.broken:
            self.broken.append(sentence)
            self.note("WRONG", sentence)

    # moving -----------------------------------------------------------------------------------------------

    def start(self, name: str, main: Callable[..., Any], *arguments: Any) -> Process:
        process = Process(self, name, main, *arguments)
        self.processes.append(process)
        self.note(f"start {name} {process.pid}")
        return process

    def live(self) -> None:
        """To the end of the world."""
        while not self.over():
            self.turn()
        self.finish()

    def turn(self, until: int | None = None) -> None:
        """One step of one process; or time passes, not beyond `until`."""
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()
        ready = [process for process in self.processes if process.can_move()]
        if not ready:
            self._pass(until)
            return
        process = self.chance.choice(ready)
        self._move(self.now + self.chance.randrange(200, 20_000))
        if self._delayed(process):
            return
        self.steps += 1
        self.note(f"step {process.name}")
        self.moving.append(process)
        process.step()
        self.moved = self.moving.pop()
        self._look()
        if process.alive and self._dies(process, self.faults.killed_at_step):
            self.kill(process)
        self.between()
        if self.chance.random() < self.faults.jump:
            self.skew += self.chance.uniform(-100, 100)
            self.note(f"the clock is set by {self.skew}")

    def _delayed(self, process: Process) -> bool:
        """A wake-up that comes late, or time that is stolen."""
        draw = self.chance.random()
        if draw < self.faults.stolen:
            process.stalled = self.now + self.chance.randrange(SECOND // 2, 3 * SECOND)
        elif draw < self.faults.stolen + self.faults.stalled:
            process.stalled = self.now + self.chance.randrange(50_000, 50_000_000)
        else:
            return False
        self.note(f"stall {process.name} {process.stalled - self.now}")
        return True

    def _pass(self, until: int | None) -> None:
        due = [p.due for p in self.processes if p.alive and not p.frozen and not p.inside]
        if self._timers:
            due.append(self._timers[0][0])
        if until is not None:
            due.append(until)
        self._move(max(self.now + 1, min(due)))

    def _look(self) -> None:
        for watch in self.watchers:
            for sentence in watch():
                self.wrong(sentence)

    def _dies(self, process: Process, how_often: float) -> bool:
        if process.name in self.unkillable or (process.name == "kernel" and not self.faults.kernel):
            return False
        return self.chance.random() < how_often

    def kill(self, process: Process) -> None:
        """`kill -9`. If it is in a step, that step never ends: the caller may be above its frames."""
        if process.alive:
            self.killed += 1
            self.buried(process, "killed")
            self.after_kill(process)

    def buried(self, process: Process, how: str) -> None:
        self.note(f"end {process.name} {process.pid} {how}")
        self.processes.remove(process)
        self._dead.append(process)
        process.bury()

    def pass_point(self, point: str) -> None:
        """The process that moves has come to a point between two effects: others may come in between, or it dies."""
        if not self.moving:
            return
        process = self.moving[-1]
        if not process.alive:
            self._rest()
        self.note(f"point {process.name} {point}")
        # Who is interrupted below must go on one day: so nobody is killed above living frames.
        alone = sum(each.alive for each in self.moving) == 1
        if alone and self._dies(process, self.faults.killed_at_point):
            self.kill(process)
        elif len(self.moving) < 4 and self.chance.random() < self.faults.interrupted:
            for _ in range(self.chance.randrange(1, 4)):
                self.turn(self.now + 100_000)
        if not process.alive:
            self._rest()

    def _rest(self) -> None:
        """Above the frames of a process that was killed in its step."""
        self.live()
        raise AssertionError("the world did not end")
