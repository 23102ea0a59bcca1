"""The window of a receive loop: a message in it was checked, and its handler has not begun."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from .events import Events
from .parties import Serving

WINDOW_WITHIN = 0.1
"""Seconds in which a running loop passes from the capability check to the handler."""
LOOK_AGAIN = 0.0005


class Windows:
    def __init__(self, events: Events) -> None:
        self._events = events

    async def passed(self, processes: Iterable[Serving], doomed: Callable[[], None] = lambda: None) -> None:
        """Wait until each loop has passed the window between check and dispatch that it may be in. One that does not is
        ended; `doomed` is told right before."""
        async with trio.open_nursery() as nursery:
            for serving in processes:
                nursery.start_soon(self._passed, serving, doomed)

    async def _passed(self, serving: Serving, doomed: Callable[[], None]) -> None:
        if serving.gone:
            return
        seen = serving.status.window()
        if not seen & 1:
            return
        with trio.move_on_after(WINDOW_WITHIN):
            # Cannot be spared: the wait until it moves, `serving.status.window() == seen`.
            while not serving.gone and serving.status.window() == seen:
                await trio.sleep(LOOK_AGAIN)
            return
        if not serving.gone and serving.process is not None:
            why = f"its loop did not move for {WINDOW_WITHIN * 1000:g} ms between a check and its handler"
            self._events.ended(serving.serves, why)
            doomed()
            serving.process.kill()
