"""What the kernel says to a server that reads it in the middle of a call, for what the call carries. (Raw cffi.)"""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from atoll.ipc import Buffer, Interface, Serves, call
from atoll.ipc.capability import BUFFER_CODE
from atoll.ipc.errors import BadRequest
from atoll.ipc.proxy import transport_of
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.launch import Process
from atoll.ipc.system import control
from atoll.ipc.transport import DEFAULTS
from atoll.native import lib
from tests.kit.serving import serving

PACKETS = 1000
"""More than a socket holds."""


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


def test_what_is_read_while_another_thread_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket blocked meanwhile, for all threads and for worker processes: whoever looked at it then stood in there."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, send = ControlSocket(ours), socket.send_fds
    blocking: list[bool] = []

    def looked_at(*args: Any) -> int:
        blocking.append(os.get_blocking(ours.fileno()))
        return send(*args)

    def read() -> None:
        for number in range(PACKETS):
            packet = control.to_kernel.decode(theirs.recv(control.PACKET_LIMIT))
            numbers.append((number, packet.number))  # type: ignore[union-attr]

    numbers: list[tuple[int, int]] = []
    monkeypatch.setattr(socket, "send_fds", looked_at)
    reading = threading.Thread(target=read)
    for number in range(PACKETS):
        if number == 1:
            reading.start()
        end.send(control.Pong(number=number, busy="x" * 4000))
    reading.join()
    assert not any(blocking)
    ours.setblocking(True)
    assert end.receive_nowait() is None
    assert numbers == [(number, number) for number in range(PACKETS)]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("text", ["\udcff", "\N{PILE OF POO}" * 1_000_000])
def test_whatever_a_server_fails_with_is_told(text: str) -> None:
    """A packet holds it, and it is text: else the kernel heard nothing but the end of the process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        raise ValueError(text)
    except ValueError as error:
        Process(ours)._failed("start()", error)
    told = control.to_kernel.decode(theirs.recv(control.PACKET_LIMIT))
    assert isinstance(told, control.Failed)
    assert told.sentence.startswith("ValueError: ")
    ours.close()
    theirs.close()


def test_descriptors_that_come_are_no_child_programs() -> None:
    """Whatever a process starts by exec had its doorbells and buffers, and held them open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("buffer")
    told = control.DeliverBuffer(token=1, size=4096, mode="writable", channel=0)
    socket.send_fds(theirs, [control.encode(told)], [memory])
    received = ControlSocket(ours).receive_nowait()
    assert received is not None
    assert received[0] == told
    (descriptor,) = received[1]
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    os.close(memory)
    ours.close()
    theirs.close()
