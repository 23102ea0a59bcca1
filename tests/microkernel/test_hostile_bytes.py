"""Bytes that somebody attached sends the kernel: whatever they are, the node lives, and answers others."""

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.ipc import attach
from atoll.ipc.bound import transport_of
from atoll.ipc.errors import AtollError, BadRequest
from atoll.ipc.system import control
from atoll.ipc.system.kernel import Kernel
from atoll.ipc.transport import DEFAULTS

from .nodes import RealNode, booted, interface

DEEP = b"\x91" * 1500 + b"\x90"
"""Arrays in each other, past what a decoder goes down to skip them."""
ACCUSATION = b"\xa4type\xaaMisbehaved\xa7channel\x01\xa5check"
PACKETS = {
    "no UTF-8": b"\x83" + ACCUSATION + b"\xa2\xff\xfe",
    "deep in a field that nobody knows": b"\x84" + ACCUSATION + b"\xa1x\xa1z" + DEEP,
}
HELLOS = {
    "no UTF-8": b"\x82\xa4type\xa5Hello\xa4name\xa2\xff\xfe",
    "deep in a field that nobody knows": b"\x83\xa4type\xa5Hello\xa4name\xa1x\xa1z" + DEEP,
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("bytes")) as running:
        yield running


def lives(node: RealNode) -> None:
    with node.attach() as other:
        assert {row.state for row in other.kernel.ps.now()} == {"serving"}
        assert all(not row.restarts for row in other.kernel.ps.now())


def test_an_argument_too_many_that_nests_deep_is_refused(node: RealNode) -> None:
    with node.attach() as liar:
        with pytest.raises(BadRequest, match="well-formed"):
            transport_of(liar.kernel).call_now(Kernel.own.spec, b"\x92\xa1x" + DEEP, DEFAULTS)
        counter = liar.open("counter", interface("counter", "Counter"))
        with pytest.raises(BadRequest, match="well-formed"):
            transport_of(counter).call_now(type(counter).get.spec, b"\x92\xa1x" + DEEP, DEFAULTS)
    lives(node)


@pytest.mark.parametrize("text", ["x - at $[²]", "x - at $[" + "9" * 5000 + "]", "` - at `$[1]"])
def test_a_text_that_reads_like_a_place_is_none(node: RealNode, text: str) -> None:
    with node.attach() as liar, pytest.raises(BadRequest, match="mode"):
        liar.kernel.buffer.now(4096, text)  # type: ignore[arg-type]
    lives(node)


@pytest.mark.parametrize("packet", PACKETS)
def test_a_packet_that_is_none_ends_its_sender_alone(node: RealNode, packet: str) -> None:
    with node.attach() as liar:
        liar._control.socket.setblocking(True)
        liar._control.socket.send(PACKETS[packet])
        assert liar._control.socket.recv(1 << 16) == b""
    lives(node)


@pytest.mark.parametrize("hello", HELLOS)
def test_a_hello_that_is_none_is_turned_away(node: RealNode, hello: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        attach._connect(end, Path(node.folder))
        end.send(HELLOS[hello])
        assert isinstance(control.to_process.decode(end.recv(1 << 16)), control.Unwelcome)
    lives(node)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300, 1e11, -1.0])
def test_a_term_that_no_clock_reaches_is_refused(node: RealNode, seconds: float) -> None:
    with node.attach() as liar:
        held = next(
            row.number for row in liar.kernel.caps.now() if row.holder == f"@{liar.welcome.attachment}"
        )
        before = len(liar.kernel.caps.now())
        with pytest.raises(AtollError, match="expires"):
            liar.kernel.derive.now(held, None, seconds)
        assert len(liar.kernel.caps.now()) == before
    lives(node)
