"""A deadline that a handler sets of a task that waits, in a process whose loop sleeps in C."""

import time
from typing import cast

import pytest
import trio

from atoll.ipc import Interface, Serves, call, testing
from atoll.ipc.context import SystemClock
from atoll.ipc.errors import DeadlineExceeded
from atoll.ipc.runtime import tasks
from tests.kit.serving import serving


class Alarm(Interface):
    @call("use")
    def rings(self) -> int:
        """When it is time."""

    @call("use")
    def waits(self) -> bool: ...

    @call("use")
    def arm(self) -> None: ...

    @call("use")
    def arm_in_a_task(self) -> None: ...

    @call("use")
    def is_held_up(self) -> None:
        """Its process loses its core whenever it is about to look how long a call has left."""


class Late:
    """A clock that is looked at by who has lost the core."""

    monotonic_ns = time.monotonic_ns

    @staticmethod
    def monotonic() -> float:
        until = time.monotonic() + 0.05
        while (now := time.monotonic()) < until:
            pass
        return now


class AlarmServer(Serves[Alarm]):
    def __init__(self) -> None:
        self._scope: trio.CancelScope | None = None

    @Alarm.rings.serve
    async def rings(self) -> int:
        with trio.CancelScope() as self._scope:
            await trio.sleep_forever()
        return 1

    @Alarm.waits.serve
    def waits(self) -> bool:
        return self._scope is not None

    @Alarm.arm.serve
    def arm(self) -> None:
        assert self._scope is not None
        self._scope.deadline = trio.current_time() + 0.05

    @Alarm.arm_in_a_task.serve
    async def arm_in_a_task(self) -> None:
        self.arm()

    @Alarm.is_held_up.serve
    def is_held_up(self) -> None:
        tasks.clock = Late  # type: ignore[assignment]


@pytest.mark.parametrize("in_trio", [False, True])
@pytest.mark.parametrize("way", ["arm", "arm_in_a_task"])
def test_the_loop_does_not_sleep_past_it(way: str, in_trio: bool) -> None:
    """Nothing was scheduled by it: the loop slept on, until something else gave trio its turn."""
    with serving(AlarmServer, in_trio=in_trio) as served:
        alarm = served.proxies[0]
        rings = alarm.rings.start()
        while not alarm.waits.now():
            pass
        getattr(alarm, way).now()
        assert rings.result() == 1


def test_whose_deadline_has_passed_is_told_so_by_a_server_that_was_held_up() -> None:
    """It ended the call before its time, and said that somebody had cancelled it."""
    with serving(AlarmServer) as served:
        alarm = served.proxies[0]
        alarm.is_held_up.now()
        with pytest.raises(DeadlineExceeded):
            alarm.with_(deadline=0.3).rings.now()


class LateAtFirst(SystemClock):
    """The clock of a server in this process, which is held up so until its handler runs."""

    def __init__(self, server: AlarmServer) -> None:
        self._server = server

    def monotonic(self) -> float:
        return Late.monotonic() if self._server._scope is None else super().monotonic()


def test_whose_deadline_has_passed_is_told_so_in_one_process() -> None:
    with testing.running(AlarmServer) as found:
        found._host.clock = LateAtFirst(cast(AlarmServer, found.server))
        with pytest.raises(DeadlineExceeded):
            found.client(Alarm).with_(deadline=0.3).rings.now()
