"""Every way to wait for a reply, alone and mixed on one channel; deadlines; rings that are full either way."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc import Deferred, Interface, Serves, call, proxy, stream, upload
from atoll.ipc.client.outside import Outside
from atoll.ipc.errors import DeadlineExceeded, Overloaded
from atoll.ipc.future import RawFuture
from atoll.ipc.system.control import Shape
from tests.kit.serving import Serving, halted, serving

TINY = Shape(ring_bits=12, bulk_bits=12)
ROUNDS = 300


class Desk(Interface):
    @call("use", idempotent=True)
    def double(self, number: int) -> int: ...

    @call("use", idempotent=True)
    def double_later(self, number: int) -> int: ...

    @call("use")
    def hold(self) -> int: ...

    @call("use")
    def wait_for(self, number: int) -> int:
        """Until `release`."""

    @call("use")
    def waiting(self) -> int: ...

    @call("use")
    def release(self) -> None: ...

    @call("use")
    def begun(self) -> int:
        """How many tasks of `double_never` have begun."""

    @call("use")
    def cancelled(self) -> int:
        """How many tasks of `double_never` were cancelled."""

    @call("use")
    def double_never(self, number: int) -> int: ...

    @call("use")
    def fill(self, size: int) -> bytes: ...

    @stream("use")
    def numbers(self, count: int) -> int: ...

    @upload("use", item=bytes)
    def sizes(self) -> int: ...


class Server(Serves[Desk]):
    def __init__(self) -> None:
        self.begun_ = self.gone = 0
        self.held: list[tuple[Deferred[int], int]] = []

    @Desk.double.serve
    def double(self, number: int) -> int:
        return number * 2

    @Desk.double_later.serve
    async def double_later(self, number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number * 2

    @Desk.hold.serve
    def hold(self) -> Deferred[int]:
        return Deferred()

    @Desk.wait_for.serve
    def wait_for(self, number: int) -> Deferred[int]:
        self.held.append((Deferred(), number))
        return self.held[-1][0]

    @Desk.waiting.serve
    def waiting(self) -> int:
        return len(self.held)

    @Desk.release.serve
    def release(self) -> None:
        for made, number in self.held:
            made.complete(number)
        self.held.clear()

    @Desk.begun.serve
    def begun(self) -> int:
        return self.begun_

    @Desk.cancelled.serve
    def cancelled(self) -> int:
        return self.gone

    @Desk.double_never.serve
    async def double_never(self, number: int) -> int:
        self.begun_ += 1
        try:
            await trio.sleep_forever()
        finally:
            self.gone += 1

    @Desk.fill.serve
    def fill(self, size: int) -> bytes:
        return b"x" * size

    @Desk.numbers.serve
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    @Desk.sizes.serve
    async def sizes(self, items: AsyncIterator[bytes]) -> int:
        total = 0
        async for item in items:
            total += len(item)
        return total


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(Server) as served:
        yield served
        assert not served.accused
        assert served.stop() == 0


def blocking(desk: Desk) -> None:
    for number in range(ROUNDS):
        assert desk.double.now(number) == number * 2
        assert desk.double_later.now(number) == number * 2
    assert list(desk.numbers.now(1000)) == list(range(1000))


def pipelining(desk: Desk) -> None:
    futures = [desk.double.start(number) for number in range(ROUNDS)]
    assert [future.result() for future in futures] == [number * 2 for number in range(ROUNDS)]


async def in_loop(desk: Desk) -> None:
    for number in range(ROUNDS):
        assert await desk.double(number) == number * 2
        assert await desk.double_later(number) == number * 2
    assert [number async for number in desk.numbers(1000)] == list(range(1000))


async def many_in_trio(desk: Desk) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(in_loop, desk)


async def many_in_asyncio(desk: Desk) -> None:
    await asyncio.gather(*(in_loop(desk) for _ in range(5)))


WAYS: dict[str, Callable[[Desk], None]] = {
    "threads": blocking,
    "futures": pipelining,
    "trio": lambda desk: trio.run(many_in_trio, desk),
    "asyncio": lambda desk: asyncio.run(many_in_asyncio(desk)),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_way_of_waiting(served: Serving, way: str) -> None:
    WAYS[way](served.proxies[0])


MIXTURES = [
    ("threads",) * 4,
    ("threads", "futures") * 2,
    ("threads", "trio"),
    ("threads", "asyncio"),
    ("asyncio", "asyncio"),
    ("trio", "trio"),
    ("trio", "asyncio") * 2,
    tuple(WAYS),
]


@pytest.mark.parametrize("mixed", MIXTURES)
def test_ways_of_waiting_mixed_on_one_channel(served: Serving, mixed: tuple[str, ...]) -> None:
    failures: list[BaseException] = []

    def run(way: str) -> None:
        try:
            WAYS[way](served.proxies[0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(way,)) for way in mixed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_loops_that_end_leave_those_that_wait_their_replies(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other comes, receives for all, and ends, while the first waits for something slow."""
    monkeypatch.setitem(globals(), "ROUNDS", 20)
    desk = served.proxies[0]
    outcome: list[int] = []

    async def wait() -> None:
        outcome.append(await desk.wait_for(1))

    first = {"trio": lambda: trio.run(wait), "asyncio": lambda: asyncio.run(wait())}
    for way in ("trio", "asyncio") * 2:
        outcome.clear()
        waiting = threading.Thread(target=first[way])
        waiting.start()
        while desk.waiting.now() != 1:
            pass
        for other in ("trio", "asyncio", "threads", "trio"):
            others = threading.Thread(target=WAYS[other], args=(desk,))
            others.start()
            others.join()
        asyncio.run(release(desk))
        waiting.join()
        assert outcome == [1]


async def release(desk: Desk) -> None:
    await desk.release()


@pytest.mark.parametrize("way", ["trio", "asyncio"])
def test_a_loop_that_waits_for_a_slow_call_sleeps(
    served: Serving, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, looks = served.proxies[0], 0
    gather = Outside._gather

    def counted(host: Outside) -> None:
        nonlocal looks
        looks += 1
        gather(host)

    async def wait() -> int:
        await desk.double_later(1)  # something came meanwhile
        before = looks
        with pytest.raises(DeadlineExceeded):
            await desk.with_(deadline=0.3).double_never(2)
        return looks - before

    async def in_trio() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.double_never, 1)
            await trio.testing.wait_all_tasks_blocked()
            found = await wait()
            nursery.cancel_scope.cancel()
        return found

    async def in_asyncio() -> int:
        task = asyncio.create_task(desk.double_never(1))
        await asyncio.sleep(0)
        found = await wait()
        task.cancel()
        return found

    monkeypatch.setattr(Outside, "_gather", counted)
    found = trio.run(in_trio) if way == "trio" else asyncio.run(in_asyncio())
    assert found < 10


@pytest.mark.parametrize("way", ["trio", "asyncio"])
def test_a_reply_on_one_channel_comes_while_a_task_waits_on_another(served: Serving, way: str) -> None:
    desk, other = served.proxies[0], served.proxy(Desk)

    async def in_trio() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.double_never, 1)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as asking:
                with halted(served):
                    asking.start_soon(other.double, 2)
                    await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async def in_asyncio() -> None:
        never = asyncio.create_task(desk.double_never(1))
        while await other.begun() != 1:
            pass
        with halted(served):
            asking = asyncio.create_task(other.double(2))
            await asyncio.sleep(0)
        assert await asking == 4
        never.cancel()

    trio.run(in_trio) if way == "trio" else asyncio.run(in_asyncio())


def test_a_deadline_ends_the_call_and_cancels_its_handler(served: Serving) -> None:
    desk = served.proxies[0]
    with pytest.raises(DeadlineExceeded):
        desk.with_(deadline=0.01).hold.now()
    seconds = 0.01
    while desk.begun.now() == 0:  # on a busy machine the deadline passes before the handler begins
        with pytest.raises(DeadlineExceeded):
            desk.with_(deadline=seconds).double_never.now(1)
        seconds *= 2
    assert desk.begun.now() == 1
    while desk.cancelled.now() != 1:
        pass


@pytest.mark.parametrize("way", ["thread", "trio", "asyncio"])
def test_a_deadline_ends_a_stream_and_an_upload_whose_server_says_nothing(served: Serving, way: str) -> None:
    served.drain()  # it takes nothing any more, so nobody but the caller looks at the deadline
    desk = served.proxies[0].with_(deadline=0.02)

    async def each() -> None:
        with pytest.raises(DeadlineExceeded):
            async for _ in desk.numbers(3):
                pass
        with pytest.raises(DeadlineExceeded):
            await desk.sizes([b"x"])

    match way:
        case "trio":
            trio.run(each)
        case "asyncio":
            asyncio.run(each())
        case _:
            with pytest.raises(DeadlineExceeded):
                list(desk.numbers.now(3))
            with pytest.raises(DeadlineExceeded):
                desk.sizes.now([b"x"])
    served.resume()


def test_a_future_that_is_cancelled_cancels_its_handler(served: Serving) -> None:
    desk = served.proxies[0]
    future = desk.double_never.start(1)
    while desk.begun.now() != 1:
        pass
    assert desk.cancelled.now() == 0
    future.cancel()
    while desk.cancelled.now() != 1:
        pass


async def test_a_cancelled_trio_task_cancels_its_handler(served: Serving) -> None:
    desk = served.proxies[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.double_never, 1)
        while await desk.begun() != 1:
            pass
        assert await desk.cancelled() == 0
        nursery.cancel_scope.cancel()
    while await desk.cancelled() != 1:
        pass


def test_more_calls_than_the_request_ring_holds_all_arrive() -> None:
    with serving(Server, shape=TINY) as served:
        desk = served.proxies[0]
        futures = [desk.double.start(number) for number in range(1000)]
        assert [future.result() for future in futures] == [number * 2 for number in range(1000)]


def test_more_replies_than_the_reply_ring_holds_all_arrive() -> None:
    with serving(Server, shape=TINY, clients=2) as served:
        futures = [served.proxies[0].fill.start(1000) for _ in range(30)]
        assert served.proxies[1].double.now(1) == 2
        assert [len(future.result()) for future in futures] == [1000] * 30


def test_a_full_request_ring_turns_casts_away_and_lets_calls_wait_until_their_deadline() -> None:
    with serving(Server, shape=TINY) as served:
        desk = served.proxies[0]
        served.drain()

        def fill() -> None:
            for number in range(1000):
                desk.double.cast(number)

        with pytest.raises(Overloaded):
            fill()
        with pytest.raises((Overloaded, DeadlineExceeded)):
            desk.with_(deadline=0.02).double.now(1)
        served.resume()
        assert desk.double.now(2) == 4


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 1025, 3000, 4000])
def test_replies_and_uploads_of_each_size(size: int) -> None:
    with serving(Server, shape=TINY) as served:
        desk = served.proxies[0]
        assert desk.fill.now(size) == b"x" * size
        assert desk.sizes.now([b"y" * size] * 20) == 20 * size


def test_a_hundred_calls_wake_a_sleeping_server_once(served: Serving) -> None:
    desk = served.proxies[0]
    assert desk.double.now(1) == 2
    while not served.status.words[11]:  # until it sleeps
        os.sched_yield()
    before = proxy.statistics(desk).wakes
    os.kill(served.pid, signal.SIGSTOP)  # so that it cannot fall asleep between two of them
    try:
        futures = [desk.double.start(number) for number in range(100)]
        assert proxy.statistics(desk).wakes == before + 1
    finally:
        os.kill(served.pid, signal.SIGCONT)
    assert [future.result() for future in futures] == [2 * number for number in range(100)]


class ClosesInBetween(asyncio.SelectorEventLoop):
    """A loop that is closed before what another thread asks of it gets through."""

    def call_soon_threadsafe(self, *asked: Any, **more: Any) -> asyncio.Handle:
        self.close()
        return super().call_soon_threadsafe(*asked, **more)


def test_a_loop_that_closes_while_a_thread_brings_its_reply_is_no_concern_of_that_thread() -> None:
    """Whoever received for it was told that an event loop is closed, in place of its own reply."""
    reply, told, raised = RawFuture(), list[str](), list[BaseException]()
    loop = ClosesInBetween()

    async def wait() -> None:
        await reply

    def receive() -> None:
        try:
            reply.complete(b"")
        except RuntimeError as error:
            raised.append(error)

    waiting = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    reply.add_done_callback(lambda: told.append("another"))
    thread = threading.Thread(target=receive)
    thread.start()
    thread.join()
    assert (raised, told) == ([], ["another"])
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]


class Runs(ClosesInBetween):
    """And that runs until then, in a thread of its own."""

    runs = False

    def is_running(self) -> bool:
        return self.runs

    def call_soon_threadsafe(self, *asked: Any, **more: Any) -> asyncio.Handle:
        self.runs = False
        return super().call_soon_threadsafe(*asked, **more)


def test_a_loop_that_closes_as_its_program_detaches() -> None:
    """`close` raised, and the program stayed attached."""
    kernel = os.pidfd_open(os.getpid())
    host, loop = Outside(kernel, lambda channel, check: None), Runs()
    loop.run_until_complete(host.wait(lambda notify: notify()))
    loop.runs = True
    host.close()
    assert loop.is_closed()
    assert host._epoll.closed
    os.close(kernel)
