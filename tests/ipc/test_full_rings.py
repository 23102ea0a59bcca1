"""Rings without room: nothing polls, nothing is dropped, and whoever makes room wakes who waits for it. (Raw cffi.)"""

import asyncio
import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc import Interface, Serves, call, stream, upload
from atoll.ipc.client.outbox import OWED_MOST, Record
from atoll.ipc.errors import DeadlineExceeded, Overloaded, TooLarge
from atoll.ipc.streams import WINDOW, cost
from atoll.ipc.system.control import Shape
from atoll.native import Kind
from tests.kit.serving import Serving, halted, serving

STREAMS = 100
ITEM = 3000


class Works(Interface):
    @call("use")
    def note(self, text: str) -> None: ...

    @call("use")
    def echo(self, text: str) -> str: ...

    @call("use")
    def never(self, name: str) -> int: ...

    @call("use")
    def begun(self) -> int:
        """How many calls of `never` and streams run now."""

    @stream("use")
    def blobs(self, count: int) -> bytes: ...

    @upload("use", item=bytes)
    def put(self) -> int: ...

    @upload("use", item=bytes)
    def spurn(self) -> int:
        """Takes nothing."""


class WorksServer(Serves[Works]):
    def __init__(self) -> None:
        self.running = 0

    @Works.note.serve
    def note(self, text: str) -> None: ...

    @Works.echo.serve
    def echo(self, text: str) -> str:
        return text

    @Works.never.serve
    async def never(self, name: str) -> int:
        with self._counted():
            await trio.sleep_forever()
        raise AssertionError

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    @Works.begun.serve
    def begun(self) -> int:
        return self.running

    @Works.blobs.serve
    async def blobs(self, count: int) -> AsyncIterator[bytes]:
        with self._counted():
            for number in range(count):
                yield number.to_bytes(4, "big") + bytes(ITEM)

    @Works.put.serve
    async def put(self, items: AsyncIterator[bytes]) -> int:
        return sum([len(item) async for item in items])

    @Works.spurn.serve
    async def spurn(self, items: AsyncIterator[bytes]) -> int:
        return await self.never("spurn")


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(WorksServer, clients=2, shape=Shape(ring_bits=14, bulk_bits=14)) as served:
        yield served
        assert not served.accused
        served.observe()
        assert not served.misbehaved


def until_begun(works: Works, count: int) -> None:
    while works.begun.now() != count:
        pass


def sleeping(served: Serving) -> None:
    """Until the server's loop sleeps."""
    while not served.status.words[11]:
        os.sched_yield()


def test_a_hundred_streams_that_nobody_reads_cost_nothing_and_go_on(served: Serving) -> None:
    stuck, other = served.proxies
    streams = [stuck.blobs.now(60) for _ in range(STREAMS)]
    until_begun(other, STREAMS)
    sleeping(served)
    before = served.heartbeat()
    with pytest.raises(
        DeadlineExceeded
    ):  # meanwhile a retry each half millisecond would be a thousand passes
        other.with_(deadline=0.5).never.now("a")
    assert served.heartbeat() - before < 50
    for numbers in streams:
        assert [int.from_bytes(blob[:4], "big") for blob in numbers] == list(range(60))
    until_begun(other, 0)


def test_streams_that_wait_for_room_are_cancelled_with_their_records(served: Serving) -> None:
    stuck, other = served.proxies
    streams = [stuck.blobs.now(60) for _ in range(STREAMS)]
    until_begun(other, STREAMS)
    for numbers in streams[1:]:
        numbers.cancel()
    until_begun(other, 1)
    assert len(list(streams[0])) == 60


def fill(works: Works) -> None:
    """Until not even the shortest record has room."""
    for size in (1000, 0):
        with contextlib.suppress(Overloaded):
            while True:
                works.note.cast("x" * size)


def test_a_thread_that_gives_up_while_the_ring_is_full_is_heard(served: Serving) -> None:
    works, other = served.proxies
    future = works.never.start("a")
    until_begun(other, 1)
    with halted(served):
        fill(works)
        giving_up = threading.Thread(target=future.cancel)
        giving_up.start()
        while not future.done():
            os.sched_yield()
    giving_up.join()
    until_begun(other, 0)


async def test_a_trio_task_that_is_cancelled_while_the_ring_is_full_is_heard(served: Serving) -> None:
    works, other = served.proxies
    async with trio.open_nursery() as nursery:
        nursery.start_soon(works.never, "a")
        while await other.begun() != 1:
            pass
        with halted(served):
            fill(works)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
    while await other.begun():
        pass


def test_an_asyncio_task_that_is_cancelled_while_the_ring_is_full_is_heard(served: Serving) -> None:
    works, other = served.proxies

    async def main() -> None:
        task = asyncio.create_task(works.never("a"))
        while await other.begun() != 1:
            pass
        with halted(served):
            fill(works)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        while await other.begun():
            pass

    asyncio.run(main())


@pytest.mark.parametrize("deadline", [None, 3600.0])
def test_a_thread_makes_the_room_that_its_call_waits_for(served: Serving, deadline: float | None) -> None:
    """It kept itself from receiving the replies that the server had no room for, and its call was `Overloaded`."""
    works, other = served.proxies
    futures = [works.echo.start("x" * ITEM) for _ in range(20)]
    other.begun.now()
    sleeping(served)  # it takes nothing more of whoever leaves its replies there
    fill(works)
    asking = works if deadline is None else works.with_(deadline=deadline)
    assert asking.begun.now() == 0
    assert [future.result() for future in futures] == ["x" * ITEM] * 20


async def test_awaiting_with_a_full_ring_halts_no_other_task(served: Serving) -> None:
    works, other = served.proxies
    found: list[int] = []

    async def ask() -> None:
        found.append(await works.begun())

    async with trio.open_nursery() as nursery:
        with halted(served):
            fill(works)
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not found
        await other.begun()
    assert found == [0] * 5


def test_what_is_owed_leaves_in_order(served: Serving) -> None:
    """Items and end of an upload, and then a call, all written while the ring is full."""
    works = served.proxies[0]
    uploads: list[Any] = []
    with halted(served):
        fill(works)
        transport = works.__dict__["_transport"]
        for count in (3, 4):
            raw = transport.open(type(works).put.spec, b"\x90", works.__dict__["_options"])
            for _ in range(count):
                raw.send_now(b"\xc4\x01x")
            raw.finish()
            uploads.append(raw)
        assert served.client(served.channels[0]).outbox.owed
    assert [raw.receive_now() for raw in uploads] == [[b"\x03"], [b"\x04"]]
    assert works.begun.now() == 0


def test_a_client_that_uploads_without_credit_is_found_out(served: Serving) -> None:
    works, other = served.proxies
    channel = served.client(served.channels[0])
    transport = works.__dict__["_transport"]
    raw = transport.open(type(works).spurn.spec, b"\x90", works.__dict__["_options"])
    item = bytes(10_000)
    record = b"\x91\xc5\x27\x10" + item
    for _ in range(WINDOW // cost(item) + 2):
        channel.outbox.control(raw.pending, Kind.ITEM, record)
    channel.settle(raw.pending)
    assert served.until_misbehaved().check == "upload without credit"
    served.misbehaved.clear()
    until_begun(other, 0)  # its handler's task ends in its own time


async def test_calls_that_are_started_on_a_loop_do_not_halt_it_and_are_owed(served: Serving) -> None:
    works, other = served.proxies
    with halted(served):
        futures = [works.begun.start() for _ in range(2000)]
        assert served.client(served.channels[0]).outbox.owed
    assert [await future for future in futures] == [0] * 2000
    assert await other.begun() == 0


async def test_so_many_started_calls_are_owed_and_no_more(served: Serving) -> None:
    works = served.proxies[0]
    text = "x" * 6000
    futures = []
    with halted(served):
        with contextlib.suppress(Overloaded):
            while len(futures) * len(text) < 2 * OWED_MOST:
                futures.append(works.note.start(text))
        assert len(futures) * len(text) < OWED_MOST
        assert len(futures) * len(text) > OWED_MOST / 2
        with pytest.raises(Overloaded):
            works.note.start(text)
        waiting = works.begun()  # a task that waits is a bound itself
    for future in futures:
        await future
    assert await waiting == 0


async def test_what_no_channel_carries_is_refused_while_others_are_owed(served: Serving) -> None:
    works = served.proxies[0]
    async with trio.open_nursery() as nursery:
        with halted(served):
            fill(works)
            nursery.start_soon(works.note, "owed")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooLarge):
                await works.note("x" * (1 << 15))
    assert await works.begun() == 0


class Walked(deque[Record]):
    walks = 0

    def __iter__(self) -> Iterator[Record]:
        self.walks += 1
        return super().__iter__()


async def test_what_is_owed_is_not_gone_through_for_each_call_that_is_started(served: Serving) -> None:
    works = served.proxies[0]
    outbox = served.client(served.channels[0]).outbox
    with halted(served):
        fill(works)
        outbox.owed = owed = Walked()
        futures = [works.begun.start() for _ in range(1000)]
        assert len(owed) == 1000 and not owed.walks
    assert [await future for future in futures] == [0] * 1000


# who waits until nothing is owed ----------------------------------------------------------------------------------------


async def test_giving_up_all_that_is_owed_is_told(served: Serving) -> None:
    works = served.proxies[0]
    outbox, told = served.client(served.channels[0]).outbox, list[str]()
    with halted(served):
        fill(works)
        futures = [works.begun.start() for _ in range(3)]
        outbox.when_paid(lambda: told.append("paid"))
        for future in futures:
            assert outbox.owed and not told
            future.cancel()
        assert told == ["paid"]


async def test_a_death_after_which_nothing_is_owed_is_told(served: Serving) -> None:
    works, other = served.proxies
    channel, told = served.client(served.channels[0]), list[str]()
    future = works.never.start("a")
    while await other.begun() != 1:
        pass
    os.kill(served.pid, signal.SIGSTOP)
    fill(works)
    future.cancel()
    channel.outbox.when_paid(lambda: told.append("paid"))
    served.crash()
    assert not told  # its cancellation is owed
    served.restart()
    channel.look()
    assert told == ["paid"]
