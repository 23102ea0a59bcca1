"""A workflow of many steps, each with an effect in the store, at another server, and in a file outside of the node.

It stays at the point that a file names, so that a test can end it there: `in 3`, with the third step's effects made and not
committed; `after 3`, with them committed.
"""

import os
from collections import defaultdict
from pathlib import Path

import trio

from atoll.ipc import Deferred, Interface, InternalFault, Keyspace, Serves, call, current
from atoll.ipc.durable import Queue, Retry, Workflow, this_step
from atoll.ipc.errors import AtollError, Overloaded

from .interface import Stages, TooFar


class Register(Interface):
    """As much of the register as it uses."""

    @call("write", once=True)
    def note(self, key: str) -> int: ...

    @call("write")
    def enter(self, key: str) -> int: ...


class Server(Serves[Stages]):
    rows: Keyspace[int]
    register: Register | None
    outside: Path

    queues = {  # noqa: RUF012
        "one": Queue(concurrency=1),
        "two": Queue(concurrency=2),
        "slow": Queue(rate=2, per=3600),
    }

    async def start(self) -> None:
        self._reached: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._released: defaultdict[str, trio.Event] = defaultdict(trio.Event)
        self._again = (self.outside / "again").exists()

    @Stages.run.serve
    async def run_(self, flow: Workflow, steps: int) -> list[int]:
        given = []
        for number in range(1, steps + 1):
            given.append(await flow.step(self.work, number))
            await self._pass(f"after {number}")
        return given

    async def work(self, number: int) -> int:
        self._tell(f"{number} {this_step().idempotency_key}")
        await self._count(f"{number}")
        if self.register is not None:
            await self.register.note(f"noted {number}")
            await this_step().share(self.register).enter(f"entered {number}")
        await self._pass(f"in {number}")
        return number * number

    @Stages.limited.serve
    async def limited(self, flow: Workflow, label: str, steps: int, most: int) -> int:
        for number in range(1, steps + 1):
            await flow.step(self.add, label, number, most)
            await self._pass(f"{label} after {number}")
        return steps

    def add(self, label: str, number: int, most: int) -> Deferred[int]:
        if number > most:
            raise TooFar(number)
        return self.rows.update(f"{label} {number}", lambda before: (before or 0) + 1)

    @Stages.stumble.serve
    async def stumble(self, flow: Workflow, label: str, failures: int) -> int:
        return await flow.with_(retry=Retry(attempts=5, pause=0.0)).step(self.try_, label, failures)

    async def try_(self, label: str, failures: int) -> int:
        attempt = this_step().attempt
        await self._count(f"{label} {attempt}")
        await self._pass(f"{label} in {attempt}")
        if attempt <= failures:
            raise Overloaded(label)
        return attempt

    @Stages.fall.serve
    async def fall(self, flow: Workflow, label: str) -> str:
        try:
            await flow.step(self.divide, label)
        except InternalFault as fault:
            told = str(fault)
        await flow.step(self.add, label, 1, 1)
        await self._pass(f"{label} after 2")
        return told

    async def divide(self, label: str) -> float:
        await self._count(f"{label} lost")
        return 1 / 0

    @Stages.nap.serve
    async def nap(self, flow: Workflow, label: str, seconds: float) -> float:
        await flow.step(self.add, label, 1, 1)
        before = flow.now()
        await self._pass(f"{label} after 1")
        await flow.sleep(seconds)
        return flow.now() - before

    @Stages.wait.serve
    async def wait(self, flow: Workflow, label: str) -> str:
        await flow.step(self.hold, label)
        return label

    async def hold(self, label: str) -> None:
        self._tell(f"began {label}")
        await self._released[label].wait()

    @Stages.change.serve
    async def change(self, flow: Workflow, label: str) -> str:
        await flow.step(self.add, label, 1, 9)
        if self._again:
            await flow.with_(name="another").step(self.add, label, 2, 9)
        else:
            await flow.step(self.add, label, 2, 9)
        await self._pass(f"{label} after 2")
        return label

    @Stages.stray.serve
    async def stray(self, flow: Workflow, label: str, what: str) -> None:
        if what == "write":
            self.rows.put(label, 1)
        elif what == "read":
            await self.rows.get(label)
        elif what == "beside":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flow.step, self.hold, label)
                nursery.start_soon(flow.step, self.hold, label)
        elif what == "unnamed":
            await flow.step(lambda: 1)

    @Stages.chance.serve
    async def chance(self, flow: Workflow, label: str) -> list[float]:
        given = [current().random.random(), current().now()]
        await flow.step(self.add, label, 1, 9)
        given += [current().random.random(), current().now()]
        self._tell(f"{label} {given}")
        await self._pass(f"{label} after 1")
        return given

    @Stages.heap.serve
    async def heap(self, flow: Workflow, size: int, *, in_step: bool) -> bytes:
        return await flow.step(self.bytes_, size) if in_step else bytes(size)

    def bytes_(self, size: int) -> bytes:
        return bytes(size)

    @Stages.loud.serve
    async def loud(self, flow: Workflow, label: str, size: int) -> str:
        try:
            await flow.step(self.shout, label, size)
        except AtollError as fault:
            told = type(fault).__name__
        await flow.step(self.add, label, 2, 9)
        await self._pass(f"{label} after 2")
        return told

    def shout(self, label: str, size: int) -> None:
        self._tell(f"shouted {label}")
        raise RuntimeError("x" * size)

    async def _count(self, key: str) -> None:
        self.rows.put(key, (await self.rows.get(key) or 0) + 1)

    def _tell(self, line: str) -> None:
        with open(self.outside / "log", "a") as log:
            log.write(f"{line}\n")
            log.flush()
            os.fsync(log.fileno())

    async def _pass(self, point: str) -> None:
        hold = self.outside / "hold"
        if hold.exists() and hold.read_text() == point:
            self._reached[point].set()
            await trio.sleep_forever()

    @Stages.release.serve
    def release(self, label: str) -> None:
        self._released[label].set()

    @Stages.reached.serve
    async def reached(self, point: str) -> None:
        await self._reached[point].wait()

    @Stages.counts.serve
    async def counts(self) -> dict[str, int]:
        return {row.key: row.value or 0 async for row in self.rows.range()}
