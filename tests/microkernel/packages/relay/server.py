"""Calls the other one."""

import sys
import threading

import trio

from atoll.ipc.capability import Cap
from atoll.ipc.context import current
from atoll.ipc.serve import Serves

from .interface import Box, Relay


class Server(Serves[Relay]):
    other: Relay

    @Relay.around.serve
    async def around(self, times: int) -> list[int]:
        seen = [current().trace]
        return seen if times == 0 else seen + await self.other.around(times - 1)

    @Relay.service.serve
    def service(self) -> str:
        return current().service

    @Relay.beyond.serve
    async def beyond(self) -> str:
        return await self.other.with_(service="control").service()

    @Relay.many.serve
    async def many(self, times: int, depth: int) -> int:
        found = 0

        async def one() -> None:
            nonlocal found
            traces = await self.other.around(depth)
            found += len(traces)

        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(one)
        return found

    @Relay.block.serve
    def block(self) -> int:
        return len(self.other.around.now(1))

    @Relay.crunch.serve
    def crunch(self, name: str) -> None:
        def compute() -> None:
            while True:
                sum(range(10_000))

        threading.Thread(target=compute, name=name, daemon=True).start()

    @Relay.interval.serve
    def interval(self) -> float:
        return sys.getswitchinterval()

    @Relay.open_all.serve
    async def open_all(self, box: Box) -> int:
        caps = [box.one, *box.more, *box.named.values()]
        found = [len(await cap.open().around(0)) for cap in caps]
        return sum(found) + (await self.open_all(box.inner) if box.inner is not None else 0)

    @Relay.pack.serve
    async def pack(self) -> Box:
        cap = Cap.of(self.other)
        return Box("outer", cap, [cap, cap], {"x": cap}, Box("inner", cap))

    @Relay.send.serve
    async def send(self) -> int:
        return await self.other.open_all(await self.pack())
