"""A program distrusts its kernel, too, if for mistakes alone: what a kernel says that cannot be is named, and nothing made
of it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from atoll.ipc import attach
from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.runtime import own_kernel
from atoll.ipc.runtime.deliveries import Deliveries
from atoll.ipc.system import control
from atoll.native import segments
from tests.microkernel.nodes import RealNode, booted, interface

PAGE = 4096
PORT = control.Port(channel=1, slot=0, generation=1, interface="Kernel", rights=())


def welcome(end: socket.socket, folder: Path) -> None:
    """What a kernel says to who attaches, with one channel to come."""
    said = control.Welcome(
        node="played", folder=str(folder), boot=1, attachment=1, operator=True, port=PORT, channels=1
    )
    notice = os.memfd_create("notice")
    os.ftruncate(notice, PAGE)
    kernel = os.pidfd_open(os.getpid())
    socket.send_fds(end, [control.encode(said)], [notice, kernel])
    os.close(notice)
    os.close(kernel)


@contextmanager
def kernel_that(folder: Path, says: Callable[[socket.socket], None]) -> Iterator[None]:
    """A kernel that says this to the first program that attaches."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(folder / attach.SOCKET))
        listening.listen()

        def play() -> None:
            end, _ = listening.accept()
            with end:
                assert isinstance(control.to_kernel.decode(end.recv(PAGE)), control.Hello)
                says(end)
                end.recv(PAGE)

        player = Thread(target=play)
        player.start()
        yield
        player.join()


def test_a_kernel_that_begins_with_anything_but_a_welcome(tmp_path: Path) -> None:
    def says(end: socket.socket) -> None:
        end.send(control.encode(control.Stop(deadline=0)))

    with kernel_that(tmp_path, says), pytest.raises(PeerMisbehaved, match="the first packet was Stop"):
        attach.connect(str(tmp_path))


def test_a_kernel_that_tells_a_program_what_is_for_servers(tmp_path: Path) -> None:
    def says(end: socket.socket) -> None:
        welcome(end, tmp_path)
        end.send(control.encode(control.Stop(deadline=0)))

    with kernel_that(tmp_path, says), pytest.raises(PeerMisbehaved, match="an unexpected packet: Stop"):
        attach.connect(str(tmp_path))


class Missed(attach.Node):
    """A program to which its kernel delivers nothing that a system call has made."""

    def _act(self, message: control.ToProcess, descriptors: list[int]) -> None:
        if isinstance(message, control.Deliver | control.DeliverBuffer):
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            super()._act(message, descriptors)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("node")) as running:
        yield running


def test_a_kernel_that_grants_and_does_not_deliver(node: RealNode) -> None:
    with Missed(node.folder, "missed") as attached:
        with pytest.raises(PeerMisbehaved, match="a capability was granted and not delivered"):
            attached.open("counter", interface("counter", "Counter"))
        with pytest.raises(PeerMisbehaved, match="a buffer was made and not delivered"):
            attached.buffer(PAGE)
        assert attached.kernel.node.now().name == attached.name


def test_a_kernel_that_makes_a_servers_buffer_and_does_not_deliver_it(
    monkeypatch: pytest.MonkeyPatch, node: RealNode
) -> None:
    with node.attach() as attached:
        monkeypatch.setattr(own_kernel, "_own", (attached.kernel, Deliveries({}, lambda: None, heard=False)))
        with pytest.raises(PeerMisbehaved, match="a buffer was made and not delivered"):
            own_kernel.buffer(own_kernel.kernel().buffer.now(PAGE, "writable"))


@pytest.mark.parametrize("mode", ["writable", "readonly", "immutable"])
@pytest.mark.parametrize(("seals", "size"), [(0, PAGE), (segments.F_SEAL_SHRINK, PAGE), (None, PAGE - 1)])
def test_a_kernel_that_delivers_a_buffer_which_is_not_what_it_says(
    mode: str, seals: int | None, size: int
) -> None:
    """Without seals, with some of them, or with all of them and too small."""
    deliveries, memory = Deliveries({}, lambda: None, heard=False), os.memfd_create("b", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    segments.seal(memory, segments.SEALS[mode] if seals is None else seals)
    with pytest.raises(PeerMisbehaved, match="its seals or its size"):
        deliveries.deliver_buffer(control.DeliverBuffer(token=1, size=PAGE, mode=mode), memory)  # type: ignore[arg-type]
    assert deliveries.buffer(1) is None
