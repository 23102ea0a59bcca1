"""Counts in rows of its own."""

import os
import sys
import threading
import time
from collections.abc import AsyncIterator

import trio

from atoll.ipc.context import current
from atoll.ipc.deferred import Deferred
from atoll.ipc.keyspace import Keyspace
from atoll.ipc.serve import Serves

from .interface import Counter, Tick


class Server(Serves[Counter]):
    rows: Keyspace[int]

    def __init__(self) -> None:
        self._state = b""
        self._taken = 0
        self._begun = 0

    @Counter.get.serve
    def get(self, key: str) -> int:
        return self.rows.local.get(key, 0)

    @Counter.add.serve
    def add(self, key: str, by: int = 1) -> Deferred[int]:
        return self.rows.update(key, lambda value: (value or 0) + by)

    @Counter.slow.serve
    async def slow(self, seconds: float) -> str:
        self._begun += 1
        await trio.sleep(seconds)
        return "done"

    @Counter.begun.serve
    def begun(self) -> int:
        return self._begun

    @Counter.die.serve
    def die(self) -> None:
        os._exit(3)

    @Counter.give_up.serve
    def give_up(self, words: str) -> None:
        sys.exit(words)

    @Counter.spin.serve
    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    @Counter.think.serve
    def think(self, name: str) -> None:
        threading.Thread(target=_compute, name=name, daemon=True).start()

    @Counter.taken.serve
    def taken(self) -> int:
        return self._taken

    @Counter.keep.serve
    def keep(self, size: int) -> None:
        self._state = bytes(size)

    @Counter.say.serve
    def say(self, text: str) -> None:
        current().log.info(text, said="yes")
        print(f"printed {text}")

    @Counter.flood.serve
    def flood(self, lines: int) -> None:
        current().log.info("wordy", said="x" * 100_000, rest="y")
        left = memoryview(b"x\n" * lines)
        while left:
            left = left[os.write(1, left) :]

    @Counter.forbidden.serve
    def forbidden(self) -> str:
        try:
            os.kill(os.getpid(), 0)
        except PermissionError as error:
            return type(error).__name__
        return "allowed"

    @Counter.ticks.serve
    async def ticks(self, after: int = 0) -> AsyncIterator[Tick]:
        while True:
            after += 1
            yield Tick(after)
            await trio.sleep(0.005)

    def hand_over(self) -> bytes:
        return self._state

    def take_over(self, state: bytes) -> None:
        self._taken = len(state)


def _compute() -> None:
    while True:
        pass
