"""A deadline that a handler sets of a task that waits, in a process whose loop sleeps in C."""

import pytest
import trio

from atoll.ipc import Interface, Serves, call
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
