"""What the kernel says to a server that reads it in the middle of a call, for what the call carries. (Raw cffi.)"""

import contextlib
import gc
import os
import resource
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from atoll.ipc import Buffer, Interface, Serves, call
from atoll.ipc.capability import BUFFER_CODE
from atoll.ipc.errors import BadRequest, PeerMisbehaved
from atoll.ipc.proxy import transport_of
from atoll.ipc.runtime import loop
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.runtime.launch import Process
from atoll.ipc.system import control
from atoll.ipc.transport import DEFAULTS
from atoll.native import lib
from tests.kit.played import played
from tests.kit.serving import Serving, serving

PACKETS = 1000
"""More than a socket holds."""
MOMENT = 0.2
"""Seconds in which a thread looks that waits for nobody."""


class Desk(Interface):
    @call("use")
    def stand(self) -> None:
        """Stops the process, and from then on its clock: it has its rings looked at first, as after a quick call."""

    @call("use")
    def take(self, buffer: Buffer) -> None: ...

    @call("use")
    def have_a_thread_look(self) -> None:
        """For what a message names that it has got, as long as its loop stands."""

    @call("use")
    def look_beside(self, token: int) -> None:
        """A thread looks for what it names, once the loop has read that it is delivered and has done nothing about it."""

    @call("use")
    def found(self) -> list[bool]:
        """Whether it found it."""

    @call("use")
    def touched(self) -> list[bool]:
        """Whether it was the loop's own thread, each time that the loop was given a channel since."""


class Server(Serves[Desk]):
    def __init__(self) -> None:
        self._touched: list[bool] = []
        self._found: list[bool] = []

    @Desk.stand.serve
    def stand(self) -> None:
        lib.atoll_clock_stand(1)
        os.kill(os.getpid(), signal.SIGSTOP)

    @Desk.take.serve
    def take(self, buffer: Buffer) -> None: ...

    @Desk.have_a_thread_look.serve
    def have_a_thread_look(self) -> None:
        process = next(found for found in gc.get_objects() if isinstance(found, Process))
        home, add = threading.get_ident(), lib.atoll_loop_add

        class Core:
            """The C core, of which a loop in C knows nothing of other threads."""

            def atoll_loop_add(self, *given: Any) -> Any:
                noted.append(threading.get_ident() == home)
                return add(*given)

            def __getattr__(self, name: str) -> Any:
                return getattr(lib, name)

        noted = self._touched
        loop.lib = Core()
        thread = threading.Thread(target=process._pump)
        thread.start()
        thread.join()

    @Desk.look_beside.serve
    def look_beside(self, token: int) -> None:
        process = next(found for found in gc.get_objects() if isinstance(found, Process))
        receive, home = process.control.receive_nowait, threading.get_ident()
        thread = threading.Thread(
            target=lambda: self._found.append(process.deliveries.port(token) is not None)
        )

        def reads() -> Any:
            packet = receive()
            if (
                packet is not None
                and isinstance(packet[0], control.Deliver)
                and threading.get_ident() == home
            ):
                thread.start()
                thread.join(MOMENT)
            return packet

        process.control.receive_nowait = reads  # type: ignore[method-assign]

    @Desk.found.serve
    def found(self) -> list[bool]:
        return self._found

    @Desk.touched.serve
    def touched(self) -> list[bool]:
        return self._touched


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


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_channel_that_another_thread_hears_of_is_given_to_the_loop_by_its_own(role: str) -> None:
    """Which runs in C meanwhile, and looks at what that thread changed: a channel could be lost to it."""
    with serving(Server) as served:
        desk = served.proxies[0]
        standing = desk.stand.start()
        while not stands(served.pid):
            pass
        looking = desk.have_a_thread_look.start()
        with contextlib.ExitStack() as stack:
            if role == "server":
                memory = served.add_channel()
            else:
                served.observe = lambda: None  # type: ignore[method-assign]
                stack.enter_context(played(served))
                del served.observe
            os.kill(served.pid, signal.SIGCONT)
            standing.result()
            looking.result()
            while not (touched := desk.touched.now()):
                pass
            assert touched == [True]
            if role == "server":
                assert served.bind(memory, Desk, served.grant(memory, Desk)).touched.now() == [True]


def test_what_the_loop_has_read_another_thread_finds() -> None:
    """It lay on the socket no more, and was not yet there: what had come with a reply was a token that names none."""
    with serving(Server) as served:
        desk = served.proxies[0]
        desk.look_beside.now(77)
        port = control.Port(channel=5, slot=0, generation=1, interface="Desk", rights=())
        served._send(control.Deliver(token=77, port=port))
        while not (found := desk.found.now()):
            pass
        assert found == [True]


class EarlyServer(Server):
    """While it is made a thread of its own hears of a channel: there is no loop yet."""

    def __init__(self) -> None:
        super().__init__()
        process = next(found for found in gc.get_objects() if isinstance(found, Process))

        def look() -> None:
            while not process.clients:
                process._pump()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()


def test_a_channel_that_another_thread_hears_of_before_there_is_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop had it from the beginning on, was given it again, and the server ended over that."""
    begin, observe = Serving._begin, Serving.observe
    with contextlib.ExitStack() as stack:

        def begins(served: Serving, version: int, *, handover: bool) -> None:
            begin(served, version, handover=handover)
            monkeypatch.setattr(Serving, "observe", lambda _: None)
            stack.enter_context(played(served))
            monkeypatch.setattr(Serving, "observe", observe)

        monkeypatch.setattr(Serving, "_begin", begins)
        with serving(EarlyServer) as served:
            served.observe()
            assert served.proxies[0].touched.now() == []


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


def test_descriptors_that_come_with_what_cannot_be_read_are_closed() -> None:
    """A program without room for all of them lost the room that it had, each time that it tried again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end, given = ControlSocket(ours), [0, 1, 2]
    free = os.dup(0)
    os.close(free)
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    socket.send_fds(theirs, [control.encode(control.Ping(number=1))], given)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(PeerMisbehaved, match="cut short"):
            end.receive_nowait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    socket.send_fds(theirs, [b"no packet"], given)
    with pytest.raises(PeerMisbehaved):
        end.receive_nowait()
    again = os.dup(0)
    os.close(again)
    assert again == free
    ours.close()
    theirs.close()
