"""A peer that writes what it likes: whoever reads it says `PeerMisbehaved`, names the check, and lives on."""

import re
import socket
from collections.abc import Iterator

import pytest

from atoll.ipc.errors import AtollError, PeerMisbehaved
from atoll.ipc.runtime.control_socket import ControlSocket
from atoll.ipc.system import control
from atoll.native import Kind
from tests.kit.serving import Serving, serving
from tests.native.suite import Server

from .attack import Attacker, Record
from .checks import ROOT, Check, every_check
from .lies import SMALL, TO_A_CALLER, TO_A_CLIENT, TO_A_SERVER, Lie, encode


def named(lie: Lie) -> str:
    return lie.name


@pytest.fixture
def served() -> Iterator[Serving]:
    """The client here is honest, and must notice nothing."""
    with serving(Server, shape=SMALL, clients=1) as served:
        yield served
        assert served.proxies[0].double.now(21) == 42
        assert served.stop() == 0


@pytest.mark.parametrize("lie", TO_A_SERVER, ids=named)
def test_a_server_names_what_a_client_wrote_wrong(served: Serving, lie: Lie) -> None:
    memory = served.add_channel()
    lie.tell(served, memory)
    found = served.until_misbehaved()
    assert (found.channel, found.check) == (memory.number, lie.check)


@pytest.fixture
def silent() -> Iterator[Serving]:
    """A server that takes nothing: the test answers in its place."""
    with serving(Server, shape=SMALL, clients=1) as served:
        served.drain()
        yield served


@pytest.mark.parametrize("lie", TO_A_CLIENT, ids=named)
def test_a_client_names_what_its_server_wrote_wrong(silent: Serving, lie: Lie) -> None:
    memory = silent.channels[0]
    finds_out = lie.tell(silent, memory)
    with pytest.raises(PeerMisbehaved) as raised:
        finds_out()
    assert raised.value.check == lie.check
    assert silent.accused == [(memory.number, lie.check)]
    with pytest.raises(PeerMisbehaved):
        silent.proxies[0].double.now(1)


@pytest.mark.parametrize("lie", TO_A_CALLER, ids=named)
def test_a_caller_names_the_reply_that_is_none(silent: Serving, lie: Lie) -> None:
    finds_out = lie.tell(silent, silent.channels[0])
    with pytest.raises(PeerMisbehaved) as raised:
        finds_out()
    assert fits(lie.check, f"{raised.value.where}: {raised.value.check}")
    assert silent.accused == []


def fits(pattern: str, said: str) -> bool:
    """Whether somebody's words have the form that the sources give them."""
    return re.search(re.escape(pattern).replace(re.escape("{}"), ".*"), said, re.DOTALL) is not None


@pytest.mark.parametrize("kind", [Kind.REPLY, Kind.FAULT])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xff" * 40, encode("no number"), encode({"a": [1]})])
def test_a_reply_that_is_none_is_an_error_of_the_peer(silent: Serving, kind: Kind, payload: bytes) -> None:
    future = silent.proxies[0].double.start(1)
    Attacker(silent.channels[0], server=True).write(Record(0, kind=kind, length=len(payload)), payload)
    with pytest.raises(AtollError):
        future.result()


# the kernel's side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "check"),
    [
        (b"\xc1", "the control socket: {}"),
        (b"x" * (control.PACKET_LIMIT + 1), "a packet or its descriptors were cut short"),
    ],
)
def test_a_process_names_a_packet_that_is_none(packet: bytes, check: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(packet)
        with pytest.raises(PeerMisbehaved) as raised:
            ControlSocket(theirs).receive_nowait()
        assert fits(check, f"{raised.value.where}: {raised.value.check}")


# all of it ------------------------------------------------------------------------------------------------------------

ELSEWHERE = {
    Check("ipc/client/channel.py", "doorbell", "client"):
        "native/test_lost_rings.py::test_a_server_that_shuts_its_doorbell_has_misbehaved",
    Check("ipc/private/sealed.py", "the store has {} there", "client"):
        "private/test_kit.py::test_rows_that_changed_places_are_refused",
    Check("servers/feedback/server.py", "the store has other words there than were submitted", "client"):
        "servers/feedback/test_check.py::test_words_that_are_not_those_of_the_record",
    Check("ipc/runtime/deliveries.py", "its seals or its size", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_delivers_a_buffer_which_is_not_what_it_says",
    Check("ipc/attach.py", "the first packet was {}", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_begins_with_anything_but_a_welcome",
    Check("ipc/attach.py", "an unexpected packet: {}", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_tells_a_program_what_is_for_servers",
    Check("ipc/attach.py", "a buffer was made and not delivered", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_grants_and_does_not_deliver",
    Check("ipc/attach.py", "a capability was granted and not delivered", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_grants_and_does_not_deliver",
    Check("ipc/runtime/own_kernel.py", "a buffer was made and not delivered", "program"):
        "adversary/test_kernels_packets.py::test_a_kernel_that_makes_a_servers_buffer_and_does_not_deliver_it",
    Check("ipc/runtime/control_socket.py", "the control socket: {}", "program"):
        "adversary/test_lies.py::test_a_process_names_a_packet_that_is_none",
    Check("ipc/runtime/control_socket.py", "a packet or its descriptors were cut short", "program"):
        "adversary/test_lies.py::test_a_process_names_a_packet_that_is_none",
    Check("microkernel/connections.py", "the control socket: {}", "kernel"):
        "adversary/test_culprits.py::test_a_program_that_says_nonsense_to_the_kernel_is_named",
    Check("microkernel/connections.py", "a packet was cut short", "kernel"):
        "adversary/test_culprits.py::test_a_program_that_says_nonsense_to_the_kernel_is_named",
    Check("microkernel/conversation.py", "an unexpected {}", "kernel"):
        "adversary/test_culprits.py::test_a_server_that_says_nonsense_to_the_kernel_is_ended_and_named",
    Check("microkernel/connections.py", "{} packets are unread", "kernel"):
        "microkernel/test_connections.py::test_who_never_reads_is_given_up",
    Check("microkernel/connections.py", "{} descriptors are unread", "kernel"):
        "microkernel/test_hostile_bytes.py::test_a_peer_that_stops_reading_ends_its_own_connection_alone",
    Check("microkernel/connections.py", "{} packets are unread: {}", "kernel"):
        "microkernel/test_connections.py::test_who_never_reads_is_given_up",
    **{
        Check("ipc/system/handover.py", told, "kernel"):
            "ipc/test_handover.py::test_memory_that_is_not_what_was_told_is_misbehaviour"
        for told in ("its memory is not sealed", "its memory has another size", "the hand-over: {}",
                     "a state of {} bytes and positions of {}")
    },
}  # fmt: skip
"""Checks that other tests reach, and which."""


def reached() -> dict[Check, str]:
    """Every check that is reached, and by what."""
    found = dict(ELSEWHERE)
    for victim, lies in (("server", TO_A_SERVER), ("client", TO_A_CLIENT), ("client", TO_A_CALLER)):
        told = {said: lie.name for lie in lies for said in (lie.check, lie.hidden) if said}
        for check in every_check():
            if check.victim == victim and check.reason in told:
                found[check] = f"lie: {told[check.reason]}"
    return found


def test_every_check_is_reached() -> None:
    """`pytest -s` shows the table."""
    by = reached()
    for check in sorted(every_check()):
        print(f"{check.victim:8} {check.file:32} {check.reason:58} {by.get(check, 'nothing')}")
    assert set(by) == every_check(), "a check that nothing reaches, or one that is no more"
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
