"""What every server's process does first, done once before there is one: in the zygote.

The interpreter adapts its code to what runs through it, and makes much when it is first asked for. What the zygote has run
through, its children need neither do again nor, since they share the pages, keep. Nothing that is begun here lasts: no
thread, task, descriptor or file is left.
"""

from collections.abc import AsyncIterator, Iterator

import msgspec
import trio

from atoll.ipc import schema
from atoll.ipc.dispatch import compile_ahead
from atoll.ipc.interface import Interface, call, stream, upload
from atoll.ipc.serve import Serves, bind

TIMES = 3
"""So often: code is adapted to its second or third run."""


class Line(msgspec.Struct):
    number: int
    text: str = ""


def rehearse() -> None:
    compile_ahead()
    for _ in range(TIMES):
        trio.run(_perform)


async def _perform() -> None:
    class Play(Interface):
        @call("play")
        def say(self, text: str, times: int = 1) -> str: ...

        @call("play")
        def think(self, line: Line) -> Line | None: ...

        @stream("hear")
        def hear(self, first: int) -> Line: ...

        @upload("play", item=Line)
        def write(self) -> int: ...

    class Actor(Serves[Play]):
        @Play.say.serve
        def say(self, text: str, times: int = 1) -> str:
            return text * times

        @Play.think.serve
        async def think(self, line: Line) -> Line | None:
            await trio.lowlevel.checkpoint()
            return line

        @Play.hear.serve
        def hear(self, first: int) -> Iterator[Line]:
            yield Line(first)

        @Play.write.serve
        async def write(self, items: AsyncIterator[Line]) -> int:
            return sum([line.number async for line in items])

    endpoint = bind(Actor, {})
    schema.described(Play)
    run = {entry.spec.name: entry.run for entry in endpoint.table}
    over = trio.Event()

    async def think() -> None:
        await run["think"](memoryview(msgspec.msgpack.encode([Line(1)])))
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(think)
        run["say"](memoryview(msgspec.msgpack.encode(["a", 2])))
        list(run["hear"](memoryview(msgspec.msgpack.encode([1]))))
        await over.wait()
