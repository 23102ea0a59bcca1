"""What the kernel says to a server that reads it in the middle of a call, for what the call carries. (Raw cffi.)"""

import os
import signal
from pathlib import Path

import pytest
from msgspec import msgpack

from atoll.ipc import Buffer, Interface, Serves, call
from atoll.ipc.capability import BUFFER_CODE
from atoll.ipc.errors import BadRequest
from atoll.ipc.proxy import transport_of
from atoll.ipc.system import control
from atoll.ipc.transport import DEFAULTS
from atoll.native import lib
from tests.kit.serving import serving


class Desk(Interface):
    @call("use")
    def stand(self) -> None:
        """Stops the process, and from then on its clock: it has its rings looked at first, as after a quick call."""

    @call("use")
    def take(self, buffer: Buffer) -> None: ...


class Server(Serves[Desk]):
    @Desk.stand.serve
    def stand(self) -> None:
        lib.atoll_clock_stand(1)
        os.kill(os.getpid(), signal.SIGSTOP)

    @Desk.take.serve
    def take(self, buffer: Buffer) -> None: ...


def stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_packet_that_a_call_has_read_is_heard_before_the_next() -> None:
    """It lay until the kernel said something else, and was heard after that."""
    with serving(Server) as served:
        desk = served.proxies[0]
        standing = desk.stand.start()
        while not stands(served.pid):
            pass
        unknown = msgpack.encode([msgpack.Ext(BUFFER_CODE, bytes(8))])
        asked = transport_of(desk).start(Desk.take.spec, unknown, DEFAULTS)
        served._send(control.Ping(number=1))
        os.kill(served.pid, signal.SIGCONT)
        standing.result()
        with pytest.raises(BadRequest, match="a token that names none"):
            asked.result()
        served._send(control.Ping(number=2))
        assert [served._expect(control.Pong).number for _ in range(2)] == [1, 2]
