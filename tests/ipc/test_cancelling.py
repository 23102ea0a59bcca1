"""A caller that is cancelled at any point leaves its channel sound: in trio and in asyncio, alone and among others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from atoll.ipc import Interface, Serves, call, future, stream, upload
from atoll.ipc.client import channel
from atoll.ipc.context import Call, Fields, SystemClock, in_hand
from atoll.ipc.errors import WouldBlock
from atoll.ipc.proxy import transport_of
from atoll.ipc.system.control import Shape
from atoll.native import Kind, lib
from tests.kit.serving import Serving, serving

POINTS = 40
"""Checkpoints at which a caller is cancelled: more than any of these calls has."""


class Post(Interface):
    @call("use")
    def echo(self, number: int) -> int: ...

    @call("use")
    def late(self, number: int) -> int: ...

    @call("use")
    def in_hand(self) -> int: ...

    @stream("use")
    def numbers(self, count: int) -> int: ...

    @stream("use")
    def silence(self) -> int: ...

    @upload("use", item=bytes)
    def sizes(self) -> int: ...


class PostServer(Serves[Post]):
    def __init__(self) -> None:
        self.running = 0

    @Post.echo.serve
    def echo(self, number: int) -> int:
        return number

    @Post.late.serve
    async def late(self, number: int) -> int:
        self.running += 1
        try:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            return number
        finally:
            self.running -= 1

    @Post.in_hand.serve
    def in_hand(self) -> int:
        return self.running

    @Post.numbers.serve
    async def numbers(self, count: int) -> AsyncIterator[int]:
        self.running += 1
        try:
            for number in range(count):
                yield number
        finally:
            self.running -= 1

    @Post.silence.serve
    async def silence(self) -> AsyncIterator[int]:
        self.running += 1
        try:
            await trio.sleep_forever()
            yield 0
        finally:
            self.running -= 1

    @Post.sizes.serve
    async def sizes(self, items: AsyncIterator[bytes]) -> int:
        self.running += 1
        try:
            return sum([len(item) async for item in items])
        finally:
            self.running -= 1


@pytest.fixture
def served() -> Iterator[Serving]:
    with serving(PostServer, shape=Shape(ring_bits=13, bulk_bits=13)) as served:
        yield served
        assert not served.accused
        served.observe()
        assert not served.misbehaved
        assert served.stop() == 0


async def ask(post: Post) -> None:
    assert await post.echo(1) == 1
    assert await post.late(2) == 2


async def read(post: Post) -> None:
    assert [number async for number in post.numbers(600)] == list(range(600))


async def send(post: Post) -> None:
    assert await post.sizes([b"x" * 1000] * 40) == 40_000


WORK: dict[str, Callable[[Post], Awaitable[None]]] = {"calls": ask, "stream": read, "upload": send}


async def still_sound(post: Post) -> None:
    """Nothing of what was cancelled is left at the server, and everything works."""
    while await post.in_hand():
        pass
    for work in WORK.values():
        await work(post)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("others", [0, 3])
def test_in_trio(served: Serving, work: str, others: int) -> None:
    post = served.proxies[0]

    async def main() -> None:
        for point in range(POINTS):
            async with trio.open_nursery() as nursery:
                for _ in range(others):
                    nursery.start_soon(ask, post)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as cancelled:
                        cancelled.start_soon(WORK[work], post)
                        for _ in range(point):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
        await still_sound(post)

    trio.run(main)


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("others", [0, 3])
def test_in_asyncio(served: Serving, work: str, others: int) -> None:
    post = served.proxies[0]

    async def main() -> None:
        for point in range(POINTS):
            beside = [asyncio.ensure_future(ask(post)) for _ in range(others)]
            task = asyncio.ensure_future(WORK[work](post))
            for _ in range(point):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.gather(*beside)
        await still_sound(post)

    asyncio.run(main())


class Interrupted(BaseException):
    """As Ctrl-C is."""


class Interrupting:
    """The C core, for a thread that is interrupted as it comes back from ringing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def atoll_ring_bell(self, c: Any) -> None:
        lib.atoll_ring_bell(c)
        raise Interrupted


@pytest.mark.parametrize("method", ["silence", "late"])
def test_a_thread_that_is_interrupted_when_its_request_is_sent(
    served: Serving, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was not told, and went on with what nobody could take or end any more."""
    post = served.proxies[0]
    said: list[int] = []
    outbox = transport_of(post).channel.outbox  # type: ignore[attr-defined]
    control = outbox.control

    def noted(pending: Any, kind: Kind) -> None:
        said.append(kind)
        control(pending, kind)

    asking = {"silence": post.silence.now, "late": lambda: post.with_(deadline=60).late.now(1)}
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "control", noted)
        patched.setattr(channel, "lib", Interrupting())
        with pytest.raises(Interrupted):
            asking[method]()  # type: ignore[operator]
    if said != [Kind.CANCEL]:
        served.close_channel(served.channels[0])  # else it would not come to its end
    assert said == [Kind.CANCEL]
    ended(post)


def test_a_stream_that_a_handler_may_not_wait_for(served: Serving) -> None:
    """Each such call left one at the server, until it took no more of that client."""
    post = served.proxies[0]
    with in_hand(Call(Fields(method="Asking.asks"), SystemClock())), pytest.raises(WouldBlock):
        next(post.silence.now())
    ended(post)


def ended(post: Post) -> None:
    """Nothing is left of a stream."""
    assert not transport_of(post).channel.pending  # type: ignore[attr-defined]
    while post.in_hand.now():
        pass


class Collecting:
    """A lock under which objects are collected, as may happen wherever one is made."""

    def __init__(self, lock: Any, left: list[Any]) -> None:
        self._lock = lock
        self._left = left
        self.stuck = False

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.stuck = True  # the thread that has it would wait for itself
            raise RuntimeError
        self._left.clear()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_stream_that_is_collected_as_another_reply_is_waited_for(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends its request needs the lock that is held at that moment."""
    post = served.proxies[0]

    def reading() -> Iterator[int]:
        with post.numbers.now(2000) as numbers:
            yield from numbers

    left = [reading()]
    assert next(left[0]) == 0
    asked = post.late.start(1)
    collecting = Collecting(future._settling, left)
    with monkeypatch.context() as patched:
        patched.setattr(future, "_settling", collecting)
        asked.raw.add_done_callback(lambda: None)
    if collecting.stuck:
        served.close_channel(served.channels[0])  # else it would not come to its end
    assert not collecting.stuck
    assert asked.result() == 1
    ended(post)
