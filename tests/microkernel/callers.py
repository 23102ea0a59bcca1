"""Clients that call the counter of a node all the while, one of each kind, and know what they were told."""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from atoll.ipc.attach import connect
from atoll.ipc.errors import NodeDown
from tests.kit.forked import forked

from .nodes import RealNode, interface

Counter = interface("counter", "Counter")
Teller = interface("teller", "Teller")

ADDING = ("blocking", "pipelined", "trio", "asyncio", "server")
"""Each adds to a key of its own, one after the other or some at a time: as fast as it is answered."""
AT_ONCE = 20
"""Calls that the pipelined one has in hand."""
REPEATABLE = (*ADDING, "stream")
"""Kinds that go on also where the counter's process dies."""
RATE = 1000
"""Calls a second."""
IN_HAND = 64
"""Calls that wait for their answers at once, each for a key of its own: changes of one key come one after the other."""
LONG = 0.03
"""Seconds that a call of the kind `long` takes. It may not be repeated: it is waited for, or ends in an error."""


class Callers:
    """One client of each kind; each counts what it was told. `mortal`: the node may die, which ends them."""

    def __init__(self, node: RealNode, kinds: tuple[str, ...], *, mortal: bool) -> None:
        self.node = node
        self.mortal = mortal
        self.told = dict.fromkeys(kinds, 0)
        self.before = self.counted()
        self.failures: list[str] = []
        self.over = threading.Event()
        ways: dict[str, Callable[[], None]] = {
            "blocking": self._blocking, "pipelined": self._pipelined, "server": self._server,
            "stream": self._stream, "long": self._long,
            "trio": lambda: trio.run(self._trio), "asyncio": lambda: asyncio.run(self._asyncio()),
        }  # fmt: skip
        self._threads = [threading.Thread(target=self._guarded, args=(ways[kind],)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def _guarded(self, kind: Callable[[], None]) -> None:
        try:
            kind()
        except NodeDown as down:
            if not self.mortal:
                self.failures.append(f"NodeDown: {down}")
        except BaseException as error:
            self.failures.append(f"{type(error).__name__}: {error}")

    def _blocking(self) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                counter.add.now("blocking")
                self.told["blocking"] += 1

    def _pipelined(self) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                for future in [counter.add.start("pipelined") for _ in range(AT_ONCE)]:
                    future.result()
                    self.told["pipelined"] += 1

    def _server(self) -> None:
        with self.node.attach() as attached:
            teller = attached.open("teller", Teller)
            while not self.over.is_set():
                teller.tell.now("server", 1)
                self.told["server"] += 1

    def _stream(self) -> None:
        with self.node.attach() as attached, attached.open("counter", Counter).ticks.now(0) as ticks:
            for tick in ticks:
                self.told["stream"] += 1
                assert tick.number == self.told["stream"], "a stream goes on where it was"
                if self.over.is_set():
                    return

    def _long(self) -> None:
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                assert counter.slow.now(LONG) == "done"
                self.told["long"] += 1

    async def _trio(self) -> None:
        async with connect(str(self.node.folder)) as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                await counter.add("trio")
                self.told["trio"] += 1

    async def _asyncio(self) -> None:
        async with connect(str(self.node.folder)) as attached:
            counter = attached.open("counter", Counter)
            while not self.over.is_set():
                await counter.add("asyncio")
                self.told["asyncio"] += 1

    def counted(self) -> dict[str, int]:
        """What each that adds has added, by its key."""
        with self.node.attach() as attached:
            counter = attached.open("counter", Counter)
            return {kind: counter.add.now(kind, 0) for kind in self.told if kind in ADDING}

    def compare(self) -> None:
        """What each was told was added, once; of what a dead node had in hand it may be there, once."""
        for kind, counted in self.counted().items():
            in_hand = (AT_ONCE if kind == "pipelined" else 1) * self.mortal
            assert 0 <= counted - self.before[kind] - self.told[kind] <= in_hand, kind

    def go_on(self) -> None:
        """Each is told something that it asked after now."""
        before = dict(self.told)
        while any(self.told[kind] < before[kind] + 2 for kind in before):
            assert self.failures == []
            self.over.wait(0.005)

    def end(self) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def called(node: RealNode, kinds: tuple[str, ...] = REPEATABLE) -> Iterator[Callers]:
    """Called by clients of these kinds: afterwards none was told of an error, and what they added is there, once."""
    callers = Callers(node, kinds, mortal=False)
    try:
        callers.go_on()
        yield callers
        callers.go_on()
    finally:
        callers.end()
    assert callers.failures == []
    callers.compare()


@contextmanager
def called_until_death(node: RealNode, kinds: tuple[str, ...] = REPEATABLE) -> Iterator[Callers]:
    """Called by clients of these kinds until the node dies, which is what ends each of them. To be compared with what the
    next boot has."""
    callers = Callers(node, kinds, mortal=True)
    try:
        callers.go_on()
        yield callers
    finally:
        callers.end()
    assert callers.failures == []


class Steady(NamedTuple):
    """What the steady caller was told."""

    told: list[list[int]]
    """By key."""
    seconds: float
    longest: float
    """Seconds that one call waited for its answer."""

    @property
    def calls(self) -> int:
        return sum(map(len, self.told))


@contextmanager
def called_steadily(
    node: RealNode, *, mortal: bool = False, after: Steady | None = None
) -> Iterator[list[Steady]]:
    """Called `RATE` times a second from a process of its own: afterwards each call was answered, and with the number that
    follows the last one. What it was told is in the list then. `mortal`: until the node dies. `after`: what the steady
    caller of a boot that died was told, which is there now, as may be what it had in hand."""
    ready, say_ready = os.pipe()
    over, say_over = os.pipe()
    told, tell = os.pipe()

    def call() -> None:
        os.close(say_over)
        steady = trio.run(_steady, str(node.folder), say_ready, over, mortal)
        with open(tell, "w") as out:
            json.dump(steady, out)

    found: list[Steady] = []
    with forked(call):
        for end in (say_ready, over, tell):
            os.close(end)
        assert os.read(ready, 1)
        os.close(ready)
        try:
            yield found
        finally:
            os.close(say_over)
            with open(told) as answer:
                said = answer.read()
    assert said, "the steady caller failed"
    steady = Steady(*json.loads(said))
    for key, numbers in enumerate(steady.told):
        first = 1 if after is None else after.told[key][-1] + 1
        assert numbers[0] in {first, first + (after is not None)}
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    found.append(steady)


async def _steady(folder: str, say_ready: int, over: int, mortal: bool) -> Steady:
    told: list[list[int]] = [[] for _ in range(IN_HAND)]
    give_back, free = trio.open_memory_channel[int](IN_HAND)
    calling, longest = trio.CancelScope(), 0.0
    async with connect(folder) as attached:
        counter = attached.open("counter", Counter)

        async def one(key: int) -> None:
            nonlocal longest
            asked = trio.current_time()
            try:
                told[key].append(await counter.add(f"steady.{key}"))
            except NodeDown:
                if not mortal:
                    raise
                calling.cancel()
                return
            longest = max(longest, trio.current_time() - asked)
            await give_back.send(key)

        for key in range(IN_HAND):
            await one(key)
        os.write(say_ready, b"!")
        began = due = trio.current_time()
        async with trio.open_nursery() as nursery:
            with calling:

                async def until_over() -> None:
                    await trio.lowlevel.wait_readable(over)
                    calling.cancel()

                nursery.start_soon(until_over)
                while True:
                    nursery.start_soon(one, await free.receive())
                    due += 1 / RATE
                    await trio.sleep_until(due)
    return Steady(told, trio.current_time() - began, longest)
