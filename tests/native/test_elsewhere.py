"""A channel needs no common ancestor, no futex and no eventfd: its memory comes over a Unix socket, and it is rung for by
whatever carries a byte. So a level that is no child of the zygote (a virtual machine, gVisor) can have one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.kit.memory import Memory
from tests.kit.serving import FIRST_CHANNEL, STATE_OPEN, serving

from .stranger import Given
from .suite import Server, Target

ROOT = Path(__file__).resolve().parents[2]
TIMES = 2000


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


@pytest.mark.parametrize("bells", [socket.socketpair, tcp], ids=["unix", "tcp"])
def test_a_stranger_calls_over_memory_and_a_bell_that_came_through_a_socket(
    bells: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    with serving(Server, clients=1) as served:
        memory = Memory(FIRST_CHANNEL + 1, served.shape, 1, epoch=served.epoch)
        for bell in (memory.client_bell, memory.server_bell):
            bell.close()
        memory.client_bell, memory.server_bell = bells()
        served.channels.append(memory)
        served._tell(memory, STATE_OPEN, served.channels[0].taken())
        served._open(memory, ())
        port = served.grant(memory, Target)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kernel = os.pidfd_open(os.getpid())
        with ours, theirs:
            command = [sys.executable, "-m", "tests.native.stranger", str(theirs.fileno()), str(TIMES)]
            with subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()]) as stranger:
                theirs.close()
                given = msgspec.msgpack.encode(Given(served._opened(memory, "client"), port))
                descriptors = [
                    memory.descriptor,
                    served._notice.descriptor,
                    memory.client_bell.fileno(),
                    kernel,
                ]
                socket.send_fds(ours, [given], descriptors)
                assert ours.recv(100) == b"rung for"
            assert stranger.returncode == 0
        os.close(kernel)
        assert served.proxies[0].double.now(1) == 2
        assert served.stop() == 0
