"""Stands long in the window between check and handler, and knows when it left it.

That window is some steps of the interpreter's, and a revocation seldom falls into it by itself. Here it does, most of the
times: so what holds then is seen to hold.
"""

import time
from collections.abc import AsyncIterator
from typing import Any

from atoll.ipc.runtime.loop import ServeLoop
from atoll.ipc.serve import Serves

from .interface import Threshold

WINDOW = 0
"""The word of the status page that is odd while a call is between check and handler."""
EVERY = 4
"""Calls of which one stands there for long."""
LONG = 0.003
"""Seconds: many times what a revocation takes that waits for nobody."""


class Slow:
    """The words of a status page, of which that of the window is written late."""

    closed = 0
    """When the window was left that was left last. Read before the word says so: whoever has seen the word is later."""
    stands = False
    _calls = 0

    def __init__(self, words: Any) -> None:
        self._words = words

    def __getitem__(self, index: int) -> int:
        word: int = self._words[index]
        return word

    def __setitem__(self, index: int, word: int) -> None:
        if index == WINDOW:
            Slow._calls += 1
            if Slow.stands:
                print("stands in its window", flush=True)
                while True:  # however late the kernel looks
                    time.sleep(LONG)
            if Slow._calls % EVERY == 0:
                time.sleep(LONG)
            Slow.closed = time.monotonic_ns()
        self._words[index] = word


class Server(Serves[Threshold]):
    def __init__(self) -> None:
        made = ServeLoop.__init__

        def make(loop: ServeLoop, *arguments: Any) -> None:
            made(loop, *arguments)
            loop._status_words = Slow(loop._status_words)  # type: ignore[assignment]

        ServeLoop.__init__ = make  # type: ignore[method-assign,assignment]

    @Threshold.plain.serve
    def plain(self) -> int:
        return Slow.closed

    @Threshold.task.serve
    async def task(self) -> int:
        return Slow.closed

    @Threshold.streamed.serve
    async def streamed(self) -> AsyncIterator[int]:
        yield Slow.closed

    @Threshold.stand.serve
    def stand(self) -> None:
        Slow.stands = True
