"""What processes say on their control sockets, and who hears it."""

from __future__ import annotations

import trio
from msgspec import structs

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system import control

from .authority import Authority
from .connections import close_all
from .events import SENTENCE_MOST, Events
from .logs import Logs
from .parties import FIRST_PING, Serving

STEP_MOST = 100
"""Characters of what a process calls the step at which it failed: that, and why, is part of replies."""


class Conversation:
    """With every process of a server."""

    def __init__(self, logs: Logs, events: Events, authority: Authority) -> None:
        self._logs = logs
        self._events = events
        self._authority = authority

    async def hear(self, serving: Serving) -> None:
        """Hear what a process says until it is gone. One that speaks nonsense is ended, of whatever kind that is: no word of
        a process ends more than itself."""
        connection = serving.connection
        assert connection is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            try:
                while (packet := await connection.receive()) is not None:
                    self._heard(serving, *packet)
            except Exception as error:
                self._events.broke_off(serving.serves, error)
                gone = False
            else:
                gone = connection.hung_up
            if not gone and serving.process is not None:  # also one that has stopped listening
                serving.process.kill()
            nursery.cancel_scope.cancel()
        serving.silent.set()

    def _heard(self, serving: Serving, message: control.ToKernel, descriptors: list[int]) -> None:
        try:
            self._take(serving, message, descriptors)
        finally:
            close_all(descriptors)

    def _take(self, serving: Serving, message: control.ToKernel, descriptors: list[int]) -> None:
        """What becomes somebody's is taken out of `descriptors`."""
        match message:
            case control.Ready():
                serving.offered = message
                serving.ready.set()
            case control.Failed():
                serving.failed = structs.replace(
                    message, step=message.step[:STEP_MOST], sentence=message.sentence[:SENTENCE_MOST]
                )
                self._logs.line(serving.holder, serving.pid, "error", f"{message.step}: {message.sentence}",
                                {"traceback": message.traceback} if message.traceback else {})  # fmt: skip
                serving.ready.set()
                serving.handed.set()
            case control.Refused(channel=channel, method=method, why=why, count=count):
                self._events.refused(serving.serves, channel, method, why, count)
            case control.Misbehaved(channel=channel, check=check):
                self._authority.misbehaved(serving.serves, channel, check)
            case control.Drained(number=number) if number != serving.drain:
                pass  # for a swap that was given up
            case control.Drained(pending=pending, lost=lost):
                serving.pending, serving.lost = pending, lost
                serving.drained.set()
            case control.HandedOver() if descriptors and serving.handed_over is None:
                serving.handed_over = message, descriptors.pop(0)
                serving.handed.set()
            case control.Pong(number=number) if number == FIRST_PING:
                serving.first_answered = True
            case control.Pong(number=number, busy=busy):
                serving.pong, serving.busy = number, busy
            case control.Log(level=level, text=text, fields=fields):
                self._logs.line(serving.holder, serving.pid, level, text, fields)
            case _:
                raise PeerMisbehaved("the control socket", f"an unexpected {type(message).__name__}")
