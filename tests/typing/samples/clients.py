"""A client's view: each way to call has the types of the interface."""

from collections.abc import AsyncIterator
from typing import reveal_type

from atoll.ipc import Cap, Failure, Interface, call, stream, testing, upload
from atoll.ipc.serve import Config, Serves


class Change:
    revision: int


class Settings(Config):
    step: int = 1
    name: str


class Explicit(Config, frozen=True, kw_only=True):
    name: str


class Spent(Failure):
    key: str
    left: int = 0
    template = "{key}"


class Counter(Interface):
    errors = (Spent,)

    @call("write", once=True)
    def add(self, key: str, by: int = 1, *, note: str = "") -> int: ...

    @stream("read", position=int)
    def changes(self, after: int = 0) -> Change: ...

    @upload("write", item=bytes)
    def put(self, name: str) -> list[str]: ...

    @call("read")
    def session(self) -> "Cap[Counter]": ...


async def use(counter: Counter, items: AsyncIterator[bytes]) -> None:
    reveal_type(await counter.add("x"))  # reveals: int
    reveal_type(counter.add.now("x", by=3, note="n"))  # reveals: int
    reveal_type(counter.add.start("x"))  # reveals: Future[int]
    reveal_type(counter.add.start("x").result())  # reveals: int
    reveal_type(await counter.add.start("x"))  # reveals: int
    counter.add.cast("x")
    reveal_type(counter.with_(deadline=0.5).add.now("x"))  # reveals: int
    reveal_type(counter.changes(3))  # reveals: Stream[Change]
    async for change in counter.changes():
        reveal_type(change)  # reveals: Change
    for change in counter.changes.now(after=3):
        reveal_type(change)  # reveals: Change
    reveal_type(await counter.put(items, "name"))  # reveals: list[str]
    reveal_type(counter.put.now([b"x"], "name"))  # reveals: list[str]
    reveal_type(counter.session.now().open())  # reveals: Counter

    counter.add.now(3)  # error
    counter.add.now("x", "three")  # error
    counter.add.now()  # error
    counter.add.start("x", 1, 2, 3)  # error
    counter.add.cast(key=b"x")  # error
    await counter.add("x", bye=1)  # error
    counter.changes.now("x")  # error
    counter.put.now(["x"], "name")  # error
    counter.put.now([b"x"])  # error
    counter.with_(service="fast")  # error
    wrong: str = counter.add.now("x")  # error
    print(wrong, counter.missing)  # error
    Spent("x", "y")  # error
    Settings(name="x").step = 3  # error
    Settings("x")  # error
    Settings(name="x", stop=3)  # error
    reveal_type(Settings(name="x").step)  # reveals: int
    Explicit(name="x")


def kit(server: type[Serves[Counter]]) -> None:
    with testing.node(server) as counter:
        reveal_type(counter)  # reveals: Counter
        reveal_type(counter.add.now("x"))  # reveals: int
