"""Async handlers begin at once, in the place of a parked task: nothing of that shows, but that a turn of trio's is saved."""

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from types import coroutine

import pytest
import trio

from atoll.ipc import Failure, Interface, Serves, call, current
from atoll.ipc.errors import DeadlineExceeded, InternalFault
from atoll.ipc.runtime import trio_inside
from atoll.ipc.runtime.tasks import STAND_INS
from atoll.ipc.serve import Endpoint
from tests.kit.serving import Serving, serving

seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="")


class Refusal(Failure):
    why: str


class Things(Interface):
    errors = (Refusal,)

    @call("use")
    def task(self) -> int:
        """Which task this is; it never waits."""

    @call("use")
    def turns(self) -> int:
        """How often that one was scheduled so far."""

    @call("use")
    def wait(self, name: str) -> str:
        """Until `let_go` of the name."""

    @call("use")
    def let_go(self, name: str) -> int:
        """How many waited."""

    @call("use")
    def mark(self, text: str, waits: bool) -> str:
        """Sets a context variable, and gives what it was before."""

    @call("use")
    def nursery(self, count: int) -> list[str]:
        """What children see as the call in hand."""

    @call("use")
    def thread(self) -> bool: ...

    @call("use")
    def expired(self) -> str: ...

    @call("use")
    def refuse(self, waits: bool) -> None: ...

    @call("use")
    def fail(self, waits: bool) -> None: ...

    @call("use")
    def foreign(self) -> str: ...

    @call("use")
    def tidied(self) -> list[str]:
        """Names of those that were cancelled while they waited."""

    @call("use")
    def generator(self) -> list[int]: ...

    @call("use")
    def sleep(self, seconds: float) -> None: ...

    @call("use")
    def held(self) -> int:
        """Calls of `wait` that wait."""


class Server(Serves[Things]):
    def __init__(self) -> None:
        self.waiting: dict[str, list[trio.Event]] = {}
        self.cancelled: list[str] = []
        self.points = 0

    @Things.task.serve
    async def task(self) -> int:
        task = trio.lowlevel.current_task()
        self.points = task._schedule_points
        return id(task)

    @Things.turns.serve
    def turns(self) -> int:
        return self.points

    @Things.wait.serve
    async def wait(self, name: str) -> str:
        event = trio.Event()
        self.waiting.setdefault(name, []).append(event)
        try:
            await event.wait()
        except trio.Cancelled:
            self.cancelled.append(name)
            self.waiting[name].remove(event)
            raise
        assert current().method == "Things.wait"
        return name

    @Things.let_go.serve
    def let_go(self, name: str) -> int:
        events = self.waiting.pop(name, [])
        for event in events:
            event.set()
        return len(events)

    @Things.held.serve
    def held(self) -> int:
        return sum(map(len, self.waiting.values()))

    @Things.mark.serve
    async def mark(self, text: str, waits: bool) -> str:
        before = seen.get()
        seen.set(text)
        if waits:
            await trio.lowlevel.checkpoint()
        assert seen.get() == text
        return before

    @Things.nursery.serve
    async def nursery(self, count: int) -> list[str]:
        told: list[str] = []

        async def child() -> None:
            await trio.lowlevel.checkpoint()
            told.append(current().method)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(child)
        return told

    @Things.thread.serve
    async def thread(self) -> bool:
        return await trio.to_thread.run_sync(threading.get_ident) != threading.get_ident()

    @Things.expired.serve
    async def expired(self) -> str:
        with trio.move_on_after(0):
            await trio.sleep_forever()
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.lowlevel.checkpoint()
        return "moved on" if scope.cancelled_caught else ""

    @Things.refuse.serve
    async def refuse(self, waits: bool) -> None:
        if waits:
            await trio.lowlevel.checkpoint()
        raise Refusal("so")

    @Things.fail.serve
    async def fail(self, waits: bool) -> None:
        if waits:
            await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("oh")

    @Things.foreign.serve
    async def foreign(self) -> str:
        @coroutine
        def alien() -> Iterator[str]:
            yield "what is this"

        await alien()
        return "never"

    @Things.tidied.serve
    def tidied(self) -> list[str]:
        return self.cancelled

    @Things.sleep.serve
    async def sleep(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await trio.sleep_forever()

    @Things.generator.serve
    async def generator(self) -> list[int]:
        async def numbers() -> AsyncIterator[int]:
            for number in range(3):
                yield number
                await trio.lowlevel.checkpoint()

        return [number async for number in numbers()]


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(Server, clients=1) as served:
        yield served
        assert not served.accused


@pytest.fixture
def things(served: Serving) -> Things:
    found: Things = served.proxies[0]
    found.task.now()  # its task stands in from now on
    return found


def until_held(things: Things, count: int) -> None:
    while things.held.now() != count:
        pass


def test_the_installed_trio_can_be_stepped() -> None:
    assert trio_inside.STEPS


def test_a_handler_that_never_waits_takes_no_turn(things: Things) -> None:
    first = things.task.now()
    turns = things.turns.now()
    for _ in range(10):
        assert things.task.now() == first
    assert things.turns.now() == turns > 0  # those that it took to stand in once


def test_those_that_wait_are_in_hand_beside_one_another(things: Things) -> None:
    futures = [things.wait.start(str(number % 3)) for number in range(3 * STAND_INS)]
    until_held(things, 3 * STAND_INS)
    for name in "210":
        assert things.let_go.now(name) == STAND_INS
    assert [future.result() for future in futures] == [str(n % 3) for n in range(3 * STAND_INS)]
    assert things.held.now() == 0
    assert things.task.now()


def test_context_variables_are_a_calls_own(things: Things) -> None:
    for waits in (False, True, False, True):
        assert things.mark.now("told", waits) == ""


def test_what_trio_offers_works_from_the_first_step_on(things: Things) -> None:
    for _ in range(3):
        assert things.nursery.now(3) == ["Things.nursery"] * 3
        assert things.nursery.now(0) == []
        assert things.thread.now()
        assert things.expired.now() == "moved on"
        assert things.generator.now() == [0, 1, 2]


@pytest.mark.parametrize("waits", [False, True])
def test_errors_arrive_as_they_are(things: Things, waits: bool) -> None:
    for _ in range(3):
        with pytest.raises(Refusal) as refused:
            things.refuse.now(waits)
        assert refused.value.why == "so"
        with pytest.raises(InternalFault, match="ZeroDivisionError: oh"):
            things.fail.now(waits)
    assert things.task.now()


def test_what_is_not_trios_is_refused_in_the_handler(things: Things) -> None:
    with pytest.raises(
        InternalFault, match="waits for something that is not trio's: it yielded 'what is this'"
    ):
        things.foreign.now()
    assert things.nursery.now(1) == ["Things.nursery"]


def test_a_deadline_ends_one_that_waits_and_nobody_else(things: Things) -> None:
    other = things.wait.start("b")
    until_held(things, 1)
    while things.tidied.now() != ["a"] * 3:  # on a loaded machine some are late before they begin
        with pytest.raises(DeadlineExceeded):
            things.with_(deadline=0.05).wait.now("a")
        until_held(things, 1)
    things.let_go.now("b")
    assert other.result() == "b"
    assert things.with_(deadline=30).nursery.now(1)
    assert things.wait.start("b").cancel() is None


def test_one_that_waits_for_a_moment_is_woken_then(things: Things) -> None:
    """Nothing else happens meanwhile that the loop would wake for."""
    for _ in range(3):
        things.sleep.now(0.01)


def test_a_caller_that_gives_up_ends_one_that_waits(things: Things) -> None:
    kept = things.wait.start("kept")
    until_held(things, 1)
    for number in range(5):
        future = things.wait.start("given up")
        until_held(things, 2)
        future.cancel()
        while len(things.tidied.now()) <= number:
            pass
    things.let_go.now("kept")
    assert kept.result() == "kept"
    assert things.tidied.now() == ["given up"] * 5
    assert things.task.now()


def test_a_channel_that_closes_cancels_those_that_wait(served: Serving, things: Things) -> None:
    other = served.add_channel()
    served.bind(other, Things, served.grant(other, Things)).wait.start("a")
    until_held(things, 1)
    served.close_channel(other)
    until_held(things, 0)
    assert things.tidied.now() == ["a"]
    assert things.nursery.now(1)


def test_a_server_that_stops_leaves_no_handler_behind(served: Serving, things: Things) -> None:
    waiting = [things.wait.start("a") for _ in range(5)]
    until_held(things, 5)
    assert served.stop(deadline=1) == 0  # at once
    assert not any(future.done() for future in waiting)


async def test_from_trio(things: Things) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(things.nursery, 2)
    assert await things.task()


def test_from_asyncio(things: Things) -> None:
    async def main() -> None:
        assert await asyncio.gather(*[things.expired() for _ in range(20)]) == ["moved on"] * 20

    asyncio.run(main())


def test_a_call_that_is_refused_before_its_first_step_leaves_no_coroutine_of_its_handler(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """What was revoked while it waited for its task, say."""
    endpoint = Endpoint(Server(), None)
    spec = endpoint.table[[entry.spec.name for entry in endpoint.table].index("task")].spec
    endpoint.by_number[spec.number].run(memoryview(b"\x90")).close()
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []
