"""The interfaces and the server that the conformance suite calls: every shape of method there is.

Handlers wait for the test (`hold`, `release`), never for time.
"""

import enum
from collections.abc import AsyncIterator, Iterator

import trio
from msgspec import Struct

from atoll.ipc import Cap, Deferred, Failure, Interface, Serves, call, current, stream, upload


class Spent(Failure):
    key: str
    left: int
    template = "counter {key!r} has {left} left: take less"


class Undeclared(Failure):
    what: str


class Colour(enum.Enum):
    red = "red"
    blue = "blue"


class Tree(Struct):
    name: str
    kids: list["Tree"] = []


class Change(Struct):
    revision: int
    key: str


class Seen(Struct):
    """What a handler sees of its call."""

    badge: int
    rights: list[str]
    trace: int
    has_deadline: bool
    service: str


class Echo(Interface):
    @call("read", idempotent=True)
    def say(self, text: str) -> str: ...


class EchoServer(Serves[Echo]):
    @Echo.say.serve
    def say(self, text: str) -> str:
        return f"{text} {current().badge}"


class Suite(Interface):
    errors = (Spent,)

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...

    @call("read", idempotent=True)
    def get(self, key: str, *, scale: int = 1) -> int: ...

    @call("read")
    def mirror(
        self, tree: Tree, colour: Colour, pairs: dict[str, tuple[int, bytes]], note: str | None
    ) -> Tree: ...

    @call("read")
    def fail(self, how: str) -> None: ...

    @call("read")
    def seen(self) -> Seen: ...

    @call("read")
    def hold(self, name: str) -> str:
        """Async: until `release(name)`."""

    @call("read")
    def defer(self, name: str) -> str:
        """Deferred: until `release(name)`."""

    @call("write")
    def release(self, name: str) -> int: ...

    @call("read")
    def holding(self) -> list[str]:
        """Who holds, is deferred, or streams now."""

    @stream("read", position=int)
    def changes(self, after: int = 0, end: int = 1000) -> Change: ...

    @stream("read")
    def ticks(self, name: str, fail_at: int = -1) -> int:
        """Endless, or failing."""

    @upload("write", item=int)
    def total(self, name: str, stop_at: int = -1) -> int: ...

    @stream("read")
    def blobs(self, name: str, size: int, count: int) -> bytes: ...

    @call("read")
    def produced(self, name: str) -> int:
        """How many blobs of that name there have been."""

    @upload("write", item=bytes)
    def gather(self, name: str) -> int:
        """Takes nothing before `release(name)`; how many bytes there were."""

    @call("read")
    def through(self, echo: Cap[Echo], text: str) -> str: ...

    @call("read")
    def back(self, echo: Cap[Echo]) -> Cap[Echo]: ...


class SuiteServer(Serves[Suite]):
    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.events: dict[str, trio.Event] = {}
        self.deferred: dict[str, list[Deferred[str]]] = {}
        self.streaming: list[str] = []

    @Suite.add.serve
    def add(self, key: str, by: int = 1) -> int:
        if by > 100:
            raise Spent(key, 100)
        self.counters[key] = self.counters.get(key, 0) + by
        return self.counters[key]

    @Suite.get.serve
    async def get(self, key: str, *, scale: int = 1) -> int:
        return self.counters.get(key, 0) * scale

    @Suite.mirror.serve
    def mirror(
        self, tree: Tree, colour: Colour, pairs: dict[str, tuple[int, bytes]], note: str | None
    ) -> Tree:
        kids = [Tree(f"{key} {number} {data!r}") for key, (number, data) in pairs.items()]
        return Tree(f"{tree.name} {colour.value} {note}", [*tree.kids, *kids])

    @Suite.fail.serve
    def fail(self, how: str) -> None:
        if how == "declared":
            raise Spent(key=how, left=7)
        if how == "undeclared":
            raise Undeclared("x")
        if how == "bug":
            raise ZeroDivisionError("one by none")

    @Suite.seen.serve
    def seen(self) -> Seen:
        mine = current()
        return Seen(mine.badge, sorted(mine.rights), mine.trace, mine.deadline is not None, mine.service)

    @Suite.hold.serve
    async def hold(self, name: str) -> str:
        event = self.events.setdefault(name, trio.Event())
        try:
            await event.wait()
        finally:
            self.events.pop(name, None)
        return f"released {name}"

    @Suite.defer.serve
    def defer(self, name: str) -> Deferred[str]:
        made: Deferred[str] = Deferred()
        self.deferred.setdefault(name, []).append(made)
        return made

    @Suite.release.serve
    def release(self, name: str) -> int:
        waiting = self.deferred.pop(name, [])
        for place, made in enumerate(waiting):
            made.complete(f"{name} {place}")
        if name in self.events:
            self.events[name].set()
        return len(waiting)

    @Suite.holding.serve
    def holding(self) -> list[str]:
        return sorted([*self.events, *self.deferred, *self.streaming])

    @Suite.changes.serve
    def changes(self, after: int = 0, end: int = 1000) -> Iterator[Change]:
        for revision in range(after + 1, end + 1):
            yield Change(revision, f"key{revision}")

    @Suite.ticks.serve
    async def ticks(self, name: str, fail_at: int = -1) -> AsyncIterator[int]:
        self.streaming.append(name)
        try:
            number = 0
            while number != fail_at:
                yield number
                number += 1
                await trio.lowlevel.checkpoint()
            raise Spent(name, number)
        finally:
            self.streaming.remove(name)

    @Suite.total.serve
    async def total(self, items: AsyncIterator[int], name: str, stop_at: int = -1) -> int:
        self.streaming.append(name)
        try:
            found = 0
            async for item in items:
                if item == stop_at:
                    raise Spent(name, item)
                found += item
            return found
        finally:
            self.streaming.remove(name)

    @Suite.blobs.serve
    async def blobs(self, name: str, size: int, count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            self.counters[name] = number + 1
            yield number.to_bytes(4, "big") + bytes(size - 4)

    @Suite.produced.serve
    def produced(self, name: str) -> int:
        return self.counters.get(name, 0)

    @Suite.gather.serve
    async def gather(self, items: AsyncIterator[bytes], name: str) -> int:
        await self.hold(name)
        found = 0
        async for item in items:
            found += len(item)
        return found

    @Suite.through.serve
    async def through(self, echo: Cap[Echo], text: str) -> str:
        return await echo.open().say(text)

    @Suite.back.serve
    def back(self, echo: Cap[Echo]) -> Cap[Echo]:
        return echo
