"""A server's view: a handler takes what the interface says and returns R, an awaitable or a Deferred of R."""

from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import reveal_type

from atoll.ipc import Deferred, Interface, Serves, call, stream, upload


class Counter(Interface):
    @call("read")
    def get(self, key: str) -> int: ...

    @call("write")
    def add(self, key: str, by: int = 1) -> int: ...

    @call("write")
    def later(self, key: str) -> int: ...

    @call("write")
    def forwarded(self, key: str) -> int: ...

    @stream("read")
    def changes(self, after: int = 0) -> str: ...

    @stream("read")
    def plain_changes(self, after: int = 0) -> str: ...

    @upload("write", item=bytes)
    def put(self, name: str) -> int: ...


class Server(Serves[Counter]):
    @Counter.get.serve
    def get(self, key: str) -> int:
        return 1

    @Counter.add.serve
    async def add(self, key: str, by: int = 1) -> int:
        reveal_type(self.get("x"))  # reveals: int
        return by

    @Counter.later.serve
    def later(self, key: str) -> Deferred[int]:
        return Deferred.resolved(3)

    @Counter.forwarded.serve
    def forwarded(self, key: str) -> Awaitable[int]:
        return self.add(key)

    @Counter.changes.serve
    async def changes(self, after: int = 0) -> AsyncIterator[str]:
        yield "x"

    @Counter.plain_changes.serve
    def plain_changes(self, after: int = 0) -> Iterator[str]:
        yield "x"

    @Counter.put.serve
    async def put(self, items: AsyncIterator[bytes], name: str) -> int:
        async for item in items:
            reveal_type(item)  # reveals: bytes
        return 3


def wrong_result(self: Server, key: str) -> str:
    return key


async def wrong_async_result(self: Server, key: str) -> str:
    return key


def wrong_deferred(self: Server, key: str) -> Deferred[str]:
    return Deferred.resolved(key)


def wrong_argument(self: Server, key: int) -> int:
    return key


def missing_argument(self: Server) -> int:
    return 1


def other_name(self: Server, name: str) -> int:
    return 1


def no_default(self: Server, key: str, by: int) -> int:
    return by


def wrong_items(self: Server, after: int = 0) -> Iterator[int]:
    yield 1


async def no_stream(self: Server, after: int = 0) -> str:
    return ""


def plain_upload(self: Server, items: AsyncIterator[bytes], name: str) -> int:
    return 1


async def wrong_upload(self: Server, items: AsyncIterator[int], name: str) -> int:
    return 1


Counter.get.serve(wrong_result)  # error
Counter.get.serve(wrong_async_result)  # error
Counter.get.serve(wrong_deferred)  # error
Counter.get.serve(wrong_argument)  # error
Counter.get.serve(missing_argument)  # error
Counter.get.serve(other_name)  # error
Counter.add.serve(no_default)  # error
Counter.changes.serve(wrong_items)  # error
Counter.changes.serve(no_stream)  # error
Counter.put.serve(plain_upload)  # error
Counter.put.serve(wrong_upload)  # error
