"""A server that says when it wants to be idle again, in a process whose loop sleeps in C: others' time comes before."""

import pytest
import trio

from atoll.ipc import Interface, Serves, call
from tests.kit.serving import serving

NEVER = 3600.0


class Sleepy(Interface):
    @call("use")
    def later(self) -> int:
        """After a moment."""

    @call("use")
    def when_told(self) -> int: ...

    @call("use")
    def waits(self) -> bool: ...

    @call("use")
    def tell(self) -> None: ...


class SleepyServer(Serves[Sleepy]):
    def __init__(self) -> None:
        self._told: trio.Event | None = None

    def idle(self) -> float | None:
        """It has something to do, in an hour."""
        return NEVER

    @Sleepy.later.serve
    async def later(self) -> int:
        with trio.move_on_after(0.01):
            await trio.sleep_forever()
        return 1

    @Sleepy.when_told.serve
    async def when_told(self) -> int:
        self._told = trio.Event()
        await self._told.wait()
        return 2

    @Sleepy.waits.serve
    def waits(self) -> bool:
        return self._told is not None

    @Sleepy.tell.serve
    def tell(self) -> None:
        assert self._told is not None
        self._told.set()


@pytest.mark.parametrize("in_trio", [False, True])
def test_its_tasks_are_woken_meanwhile(in_trio: bool) -> None:
    with serving(SleepyServer, in_trio=in_trio) as served:
        sleepy = served.proxies[0]
        assert sleepy.later.now() == 1


@pytest.mark.parametrize("in_trio", [False, True])
def test_its_tasks_run_that_a_plain_handler_has_woken(in_trio: bool) -> None:
    with serving(SleepyServer, in_trio=in_trio) as served:
        sleepy = served.proxies[0]
        told = sleepy.when_told.start()
        while not sleepy.waits.now():
            pass
        sleepy.tell.now()
        assert told.result() == 2
