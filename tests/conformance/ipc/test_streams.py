"""Streams and uploads: order, credits, cancellation from either end, errors, resumption."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
import trio

from atoll.ipc import errors
from atoll.ipc.streams import WINDOW

from .conftest import Open
from .suite_server import Spent, Suite, SuiteServer
from .test_calls import settle


@pytest.fixture
def suite(open_server: Open) -> Suite:
    return open_server(SuiteServer).client(Suite)


def test_a_thread_reads_a_stream_of_many_windows_in_order(suite: Suite) -> None:
    assert [change.revision for change in suite.changes.now(3, 2000)] == list(range(4, 2001))


async def test_a_trio_task_reads_a_stream_in_order(suite: Suite) -> None:
    assert [change.revision async for change in suite.changes(end=1500)] == list(range(1, 1501))


def test_an_asyncio_task_reads_a_stream_in_order(suite: Suite) -> None:
    async def read() -> list[int]:
        return [change.revision async for change in suite.changes(end=700)]

    assert asyncio.run(read()) == list(range(1, 701))


def test_an_empty_stream_ends_at_once(suite: Suite) -> None:
    assert list(suite.changes.now(5, 5)) == []


def test_a_failure_arrives_after_the_items_before_it(suite: Suite) -> None:
    ticks = suite.ticks.now("t", 300)
    assert [next(ticks) for _ in range(300)] == list(range(300))
    with pytest.raises(Spent) as caught:
        next(ticks)
    assert caught.value == Spent("t", 300)


def test_a_slow_reader_holds_an_endless_stream_at_a_window(suite: Suite) -> None:
    ticks = suite.ticks.now("t")
    assert next(ticks) == 0
    settle(suite, ["t"])
    assert [next(ticks) for _ in range(1000)] == list(range(1, 1001))
    ticks.cancel()
    settle(suite, [])
    assert list(ticks) == []


def test_leaving_the_block_cancels_the_servers_generator(suite: Suite) -> None:
    with suite.ticks.now("t") as ticks:
        assert next(ticks) == 0
        settle(suite, ["t"])
    settle(suite, [])


async def test_an_async_reader_that_stops_cancels_the_servers_generator(suite: Suite) -> None:
    async with aclosing(suite.ticks("t")) as ticks:
        async for number in ticks:
            if number == 5:
                break
    while await suite.holding():
        pass


async def test_cancelling_the_reading_task_cancels_the_servers_generator(suite: Suite) -> None:
    async def read() -> None:
        async for _ in suite.ticks("t"):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while await suite.holding() != ["t"]:
            pass
        nursery.cancel_scope.cancel()
    while await suite.holding():
        pass


def test_a_deadline_ends_a_stream(suite: Suite) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        deque(suite.with_(deadline=0.05).ticks.now("t"), maxlen=0)
    settle(suite, [])


def test_streams_and_calls_go_side_by_side(suite: Suite) -> None:
    streams = [suite.changes.now(0, 600) for _ in range(5)]
    assert suite.add.now("x") == 1
    for row in zip(*streams, strict=True):
        assert len({change.revision for change in row}) == 1


def test_an_upload_of_many_windows_arrives_whole(suite: Suite) -> None:
    assert suite.total.now(range(2000), "sum") == sum(range(2000))
    assert suite.total.now([], "none") == 0


async def test_an_upload_takes_async_and_plain_iterables(suite: Suite) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(600):
            yield number

    assert await suite.total(numbers(), "sum") == sum(range(600))
    assert await suite.total([1, 2, 3], "sum") == 6


def test_a_handler_that_fails_ends_the_upload(suite: Suite) -> None:
    with pytest.raises(Spent) as caught:
        suite.total.now(iter(range(10**9)), "sum", stop_at=400)
    assert caught.value == Spent("sum", 400)


def test_a_client_that_fails_while_it_uploads_cancels_the_handler(suite: Suite) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        suite.total.now(broken(), "sum")
    settle(suite, [])


def test_an_item_of_another_type_is_named(suite: Suite) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        suite.total.now(["one"], "sum")  # type: ignore[list-item]
    assert str(caught.value) == "Suite.total(item): expected `int`, got `str`"


def test_rights_hold_for_streams(open_server: Open) -> None:
    powerless = open_server(SuiteServer).client(Suite, rights={"write"})
    with pytest.raises(errors.NotAllowed):
        next(powerless.changes.now())


BLOB = 64 * 1024
WINDOW_BYTES = 1 << 20
"""What may lie between the two ends of a stream."""


@pytest.mark.parametrize("size", [4, BLOB, 700_000])
def test_an_upload_that_nobody_takes_is_held_at_a_window_of_bytes(suite: Suite, size: int) -> None:
    most = min(WINDOW, max(2, WINDOW_BYTES // size))
    released = threading.Event()
    given = 0

    def blobs() -> Iterator[bytes]:
        nonlocal given
        for number in range(3 * most):
            assert released.is_set() or number <= most, "credit for more than a window"
            given = number
            yield bytes(size)

    outcome: list[int] = []
    uploading = threading.Thread(target=lambda: outcome.append(suite.gather.now(blobs(), "g")))
    uploading.start()
    while given < most - 1:
        suite.holding.now()
    settle(suite, ["g"])
    for _ in range(50):  # it stands, whatever else its client receives
        assert suite.holding.now() == ["g"]
    released.set()
    suite.release.now("g")
    uploading.join()
    assert outcome == [3 * most * size]


@pytest.mark.parametrize("size", [BLOB, 700_000])
def test_a_stream_that_nobody_takes_is_held_at_a_window_of_bytes(suite: Suite, size: int) -> None:
    most = max(2, WINDOW_BYTES // size)
    blobs = suite.blobs.now("b", size, 4 * most)
    while suite.produced.now("b") < most - 1:
        pass
    for _ in range(200):  # each call receives whatever the server sends
        assert suite.produced.now("b") <= most + 1, "one more waits at the server for its credit"
    assert [int.from_bytes(blob[:4], "big") for blob in blobs] == list(range(4 * most))


def test_items_of_all_sizes_find_credit(suite: Suite) -> None:
    """Whatever was taken and is not granted yet, the dearest item has its turn."""
    sizes = [1, 500_000, 300_000, 4097, 700_000, 1, 1] * 12
    for name, order in (("up", sizes), ("down", sorted(sizes)), ("mixed", sizes[::-1])):
        held = threading.Thread(target=settle_and_release, args=(suite, name))
        held.start()
        assert suite.gather.now((bytes(size) for size in order), name) == sum(order)
        held.join()
    for size in (4, 5000, 600_000):
        assert sum(len(blob) for blob in suite.blobs.now("b", size, 40)) == 40 * size


def settle_and_release(suite: Suite, name: str) -> None:
    settle(suite, [name])
    suite.release.now(name)
