"""A server whose threads receive beside its loop: what that is told of a channel meanwhile. (Raw cffi.)"""

import threading

import trio

from atoll.ipc import Interface, Serves, call
from atoll.native import lib
from tests.adversary.attack import Attacker
from tests.kit.memory import fresh_base
from tests.kit.played import client_of_played, played, proxy_of_played
from tests.kit.serving import serving
from tests.native.suite import Target

RESTARTING = 2


class Asks(Interface):
    @call("use")
    def ask(self) -> int: ...

    @call("use")
    def receive(self) -> None:
        """In a thread, until `leave`."""

    @call("use")
    def receives(self) -> bool: ...

    @call("use")
    def leave(self) -> None: ...


class AsksServer(Serves[Asks]):
    """Asks the server that the test plays."""

    def __init__(self) -> None:
        self._leaves = threading.Event()

    @Asks.ask.serve
    async def ask(self) -> int:
        return int(await proxy_of_played(Target).double(1))

    @Asks.receive.serve
    async def receive(self) -> None:
        channel = client_of_played()

        def receive() -> None:
            channel.receiving.acquire()
            self._leaves.wait()
            channel.leave()

        await trio.to_thread.run_sync(receive)

    @Asks.receives.serve
    def receives(self) -> bool:
        return client_of_played().receiving.locked()

    @Asks.leave.serve
    def leave(self) -> None:
        self._leaves.set()


def test_a_death_that_was_told_while_a_thread_received() -> None:
    """It had its reply, and left without having heard; the loop had heard, could not look then, and was not told again."""
    with serving(AsksServer) as served, played(served) as memory:
        asks = served.proxies[0]
        asking = asks.ask.start()
        while not Attacker(memory, server=True).hears():
            served.observe()
        receiving = asks.receive.start()
        while not asks.receives.now():
            pass
        memory.epoch, memory.base = 2, fresh_base()
        taken = memory.taken()
        lib.atoll_notice_channel(served.server_notice.c, 0, 2, RESTARTING, memory.base, taken)
        memory.wake_client()
        served.observe()
        while not served.status.words[11]:  # the loop has heard, and sleeps
            served.observe()
        asks.leave.now()
        receiving.result()
        while not Attacker(memory, server=True).hears():  # it is idempotent, and sent again
            served.observe()
        asking.cancel()
