"""A swap that the kernel gave up before the old version had looked: it goes on as if nothing had been."""

import os
import signal

from atoll.ipc import Interface, Serves, call
from tests.kit.serving import serving


class Echo(Interface):
    @call("read", idempotent=True)
    def echo(self, number: int) -> int: ...


class Server(Serves[Echo]):
    @Echo.echo.serve
    def echo(self, number: int) -> int:
        return number


def test_a_drain_and_its_end_may_lie_on_the_control_socket_together() -> None:
    with serving(Server) as served:
        os.kill(served.pid, signal.SIGSTOP)
        served.begin_drain(7)
        served.resume()
        os.kill(served.pid, signal.SIGCONT)
        assert served.drained() == 7
        assert served.proxies[0].with_(deadline=20.0).echo.now(3) == 3
