"""Handlers that fail over being ended, since their caller waits no more: their server goes on."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio

from atoll.ipc import Interface, Serves, call, stream, testing, upload
from tests.kit.serving import serving


class Fragile(Interface):
    @call("use")
    def sound(self) -> int: ...

    @call("use")
    def waiting(self) -> int: ...

    @stream("use")
    def silent(self) -> int: ...

    @stream("use")
    def left(self) -> int: ...

    @stream("use")
    def left_plainly(self) -> int: ...

    @stream("use")
    def stubborn(self) -> int: ...

    @upload("use", item=bytes)
    def taking(self) -> int: ...


async def fails(began: trio.Event) -> None:
    try:
        began.set()
        await trio.sleep_forever()
    finally:
        raise ValueError("its cleaning up goes wrong")


async def in_a_nursery() -> None:
    """What it ends with is neither an `Exception` nor all of it `Cancelled`."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fails, trio.Event())


class Server(Serves[Fragile]):
    @Fragile.sound.serve
    def sound(self) -> int:
        return 1

    @Fragile.waiting.serve
    async def waiting(self) -> int:
        await in_a_nursery()
        return 0

    @Fragile.silent.serve
    async def silent(self) -> AsyncIterator[int]:
        yield 1
        await in_a_nursery()

    @Fragile.left.serve
    async def left(self) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise ValueError("its cleaning up goes wrong")

    @Fragile.left_plainly.serve
    def left_plainly(self) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise ValueError("its cleaning up goes wrong")

    @Fragile.stubborn.serve
    def stubborn(self) -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                continue

    @Fragile.taking.serve
    async def taking(self, items: AsyncIterator[bytes]) -> int:
        async for _ in items:
            await in_a_nursery()
        return 0


def a_call(proxy: Fragile) -> None:
    asked = proxy.waiting.start()
    assert proxy.sound.now() == 1
    asked.cancel()


def a_stream(name: str) -> Callable[[Any], None]:
    def one(proxy: Fragile) -> None:
        with getattr(proxy, name).now() as numbers:
            assert next(numbers) == 1

    return one


def an_upload(proxy: Fragile) -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:

            async def items() -> AsyncIterator[bytes]:
                yield b"one"
                assert await proxy.sound() == 1
                scope.cancel()
                await trio.sleep_forever()

            await proxy.taking(items())

    trio.run(main)


WORK = [
    a_call,
    an_upload,
    *[a_stream(name) for name in ("silent", "left", "left_plainly", "stubborn")],
]
NAMES = ["a call", "an upload", "silent", "left", "left plainly", "stubborn"]


@pytest.mark.parametrize("work", WORK, ids=NAMES)
def test_in_a_process(work: Callable[[Any], None]) -> None:
    with serving(Server) as served:
        work(served.proxies[0])
        assert served.drain() == {}
        served.resume()
        assert served.proxies[0].sound.now() == 1


@pytest.mark.parametrize("work", WORK[:-1], ids=NAMES[:-1])
def test_in_a_test(work: Callable[[Any], None]) -> None:
    """All but a generator that stays open: what becomes of it then is this process's."""
    with testing.node(Server) as proxy:
        work(proxy)
        assert proxy.sound.now() == 1
