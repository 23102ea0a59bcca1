"""Bytes that somebody attached sends the kernel: whatever they are, the node lives, and answers others."""

import contextlib
import ctypes
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import msgspec
import pytest
import trio
import trio.testing

from atoll.ipc import attach
from atoll.ipc.bound import transport_of
from atoll.ipc.errors import AtollError, BadRequest, PeerDied, PeerMisbehaved
from atoll.ipc.system import control, records
from atoll.ipc.system.kernel import Kernel, Load, StartFailed, Swap
from atoll.ipc.system.records import KeyPart, Row
from atoll.ipc.transport import DEFAULTS
from atoll.microkernel.connections import TURN, Connection
from atoll.microkernel.conversation import Conversation
from atoll.microkernel.notices import LINE

from .nodes import PACKAGES, RealNode, booted, interface, wait_for_end

AnyRow = TypeVar("AnyRow", bound=Row)

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
    with booted(tmp_path_factory.mktemp("bytes"), more=BABBLER) as running:
        yield running


BABBLER = f"""
[server.babbler]
package = "{PACKAGES}/babbler"
needs = {{}}
"""


def lives(node: RealNode) -> None:
    with node.attach() as other:
        others = [row for row in other.kernel.ps.now() if row.server != "babbler"]
        assert {row.state for row in others} == {"serving"}
        assert not any(row.restarts for row in others)


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


def test_an_accusation_that_fills_a_packet_ends_its_channel_alone(node: RealNode) -> None:
    """What the kernel then tells the accused is a packet, too."""
    with node.attach() as liar:
        counter = liar.open("counter", interface("counter", "Counter"))
        accused = next(
            row.channel
            for row in liar.kernel.channels.now("counter")
            if row.client == f"@{liar.welcome.attachment}"
        )
        room = control.PACKET_LIMIT - len(control.encode(control.Misbehaved(channel=accused, check="")))
        liar._control.socket.setblocking(True)
        said = control.Misbehaved(channel=accused, check="x" * (room - 4))
        liar._control.socket.send(control.encode(said))
        with contextlib.suppress(AtollError):
            while True:
                counter.get.now("x")
    with node.attach() as other:
        assert other.open("counter", interface("counter", "Counter")).get.now("x") == 0
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


# what a server says ---------------------------------------------------------------------------------------------------


def refused(count: int) -> bytes:
    return control.encode(control.Refused(channel=1, slot=0, method=0, why="slot", count=count))


@pytest.mark.parametrize("counts", [(2**64 - 1, 2**64 - 1), (-1,), (2**48 - 1,) * 3], ids=str)
def test_a_server_that_counts_beyond_all_bounds_is_ended_at_most(
    node: RealNode, counts: tuple[int, ...]
) -> None:
    with node.attach() as attached:
        babbler = attached.open("babbler", interface("babbler", "Babbler"))
        with contextlib.suppress(PeerDied):
            babbler.say.now([refused(count) for count in counts])
        while next(row.state for row in attached.kernel.ps.now() if row.server == "babbler") != "serving":
            pass
        assert all(row.count < 2**63 for row in attached.kernel.refused.now())
    lives(node)


def test_a_sum_of_what_a_server_counts_has_an_end(node: RealNode) -> None:
    """A row has 64 bits for it."""
    packets = [refused(2**48 - 1)] * 1024
    with node.attach() as attached:
        babbler = attached.open("babbler", interface("babbler", "Babbler"))
        for _ in range(33):
            babbler.say.now(packets)
        assert max(row.count for row in attached.kernel.refused.now()) < 2**63
        babbler.write.now(1, 1)
    lives(node)


AT_LENGTH = """
from atoll.ipc.system import control


class Server(Server):
    async def start(self) -> None:
        with _control_socket() as end:
            end.send(control.encode(control.Failed(step="s" * 1000, sentence="x" * 190_000)))
"""


def test_a_server_that_says_at_length_why_it_does_not_start_is_quoted_in_part(
    node: RealNode, tmp_path: Path
) -> None:
    """More is no reply to whoever wants it started, and no row of `ps` where it is not the first start."""
    package = tmp_path / "babbler"
    shutil.copytree(f"{PACKAGES}/babbler", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "server.py").open("a") as out:
        out.write(AT_LENGTH)
    with node.attach() as attached:
        with pytest.raises(StartFailed) as told:
            attached.kernel.load.now(Load(server="lengthy", package=str(package), level="process"))
        assert "xxx" in told.value.reason and len(str(told.value)) < 5000
    lives(node)


def test_a_server_whose_log_line_is_of_no_level_is_ended_and_leaves_no_memory_behind(node: RealNode) -> None:
    line = msgspec.msgpack.encode({"type": "Log", "level": "x" * 100_000, "text": ""})
    with node.attach() as attached:
        pid = next(row.pid for row in attached.kernel.ps.now() if row.server == "babbler")
        with contextlib.suppress(PeerDied):
            attached.open("babbler", interface("babbler", "Babbler")).say.now([line])
        wait_for_end(pid)
        while not [
            row for row in attached.kernel.logs.now(0, "babbler", False) if "broke the protocol" in row.text
        ]:
            pass
    lives(node)


def given(node: RealNode, memory: str) -> int:
    """How many descriptors of memory that a server handed over the kernel has."""
    assert node.kernel is not None
    links = []
    for link in Path(f"/proc/{node.kernel.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(link))
    return sum(memory in link for link in links)


def test_a_state_that_no_swap_asked_for_is_let_go(node: RealNode) -> None:
    """A hand-over that came after the swap was given up looks so. The next swap is not answered by it."""
    late = control.encode(control.HandedOver(size=0, positions=1))
    with node.attach() as attached:
        babbler = attached.open("babbler", interface("babbler", "Babbler"))
        babbler.hand.now(late, "late")
        while not given(node, "late"):
            pass
        attached.kernel.swap.now(Swap(server="babbler"))
        assert not given(node, "late")
        babbler.hand.now(late, "late")
        while not given(node, "late"):
            pass
        attached.kernel.restart.now("babbler")
        assert not given(node, "late")
    lives(node)


HELLO = control.encode(control.Hello(name="with more"))


@pytest.mark.parametrize("packet", [HELLO, control.encode(control.Pong(number=1))], ids=["hello", "another"])
def test_what_rides_along_with_a_hello_is_let_go(node: RealNode, packet: bytes) -> None:
    rider = os.memfd_create("rider")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        attach._connect(end, Path(node.folder))
        socket.send_fds(end, [packet], [rider] * 16)
        assert isinstance(control.to_process.decode(end.recv(1 << 16)), control.Unwelcome)
    os.close(rider)
    assert not given(node, "rider")
    lives(node)


# what the record keeps ------------------------------------------------------------------------------------------------


def rows(
    node: RealNode, table: type[AnyRow], *key: KeyPart, keyspace: str = records.KEYSPACE
) -> list[AnyRow]:
    with node.attach() as attached:
        state, start, found = attached.keyspace(keyspace), table.key_of(*key), []
        while True:
            page = state.range.now(start, records.after(table.key_of(*key)), 200)
            found += [records.decode(table, item.value or b"") for item in page.items]
            if not page.more:
                return found
            start = page.items[-1].key + b"\0"


def test_an_accusation_in_too_many_words_takes_no_row_of_others_along(node: RealNode) -> None:
    with node.attach() as liar:
        liar.open("counter", interface("counter", "Counter"))
        mine = [
            row.channel
            for row in liar.kernel.channels.now("counter")
            if row.client == f"@{liar.welcome.attachment}"
        ]
        liar._control.socket.setblocking(True)
        liar._control.socket.send(
            control.encode(control.Misbehaved(channel=mine[0], check="\U0001f41a" * 600))
        )
        with node.attach() as other:
            number = other.welcome.attachment
    while number not in {row.attachment for row in rows(node, records.AttachmentRow)}:
        pass
    while not [row for row in rows(node, records.EventRow) if "\U0001f41a" in row.sentence]:
        pass
    assert not [row for row in rows(node, records.EventRow) if row.kind == "rows given up"]
    lives(node)


def test_lines_that_fill_more_than_a_message_are_all_kept(node: RealNode) -> None:
    with node.attach() as attached:
        attached.open("babbler", interface("babbler", "Babbler")).write.now(600, 4000)
    while (
        len([row for row in rows(node, records.LogRow, "babbler", keyspace=records.LOG) if "yyy" in row.text])
        < 600
    ):
        pass
    assert not [row for row in rows(node, records.EventRow) if row.kind == "rows given up"]


# who does not listen, or does not stop --------------------------------------------------------------------------------


async def test_a_peer_that_stops_reading_ends_its_own_connection_alone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)

    def send_all() -> NoReturn:
        while True:
            connection.send(control.AddSegment(index=0), (ours.fileno(),))

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.pump)
            with pytest.raises(PeerMisbehaved, match="descriptors are unread"):
                send_all()
            await trio.testing.wait_all_tasks_blocked()
            connection.close()
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks, "the pump has ended by itself"


async def test_a_process_that_stopped_listening_is_ended() -> None:
    """Its connection was closed where it was to be told something; where it is heard, it is ended."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    killed: list[str] = []
    nobody: Any = None
    serving: Any = SimpleNamespace(
        connection=Connection(ours),
        process=SimpleNamespace(kill=lambda: killed.append("it")),
        silent=trio.Event(),
    )
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Conversation(nobody, nobody, nobody).hear, serving)
            await trio.testing.wait_all_tasks_blocked()
            serving.connection.close()
    assert killed == ["it"]
    assert serving.silent.is_set()


async def test_a_peer_that_does_not_stop_talking_leaves_others_their_turn() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection, turns, heard = Connection(ours), 0, 0
    theirs.setblocking(False)

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            while heard < 1000:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        theirs.send(control.encode(control.Pong(number=1)))
                await connection.receive()
                heard += 1
            assert turns >= heard // (2 * TURN)
            nursery.cancel_scope.cancel()
    connection.close()


def test_positions_that_cannot_be_keep_nobody_from_listing_channels(node: RealNode) -> None:
    """They lie in memory that a client can write."""
    with node.attach() as attached:
        counter = attached.open("counter", interface("counter", "Counter"))
        counter.get.now("x")
        number = transport_of(counter).port.channel
        maps = Path("/proc/self/maps").read_text().splitlines()
        memory = next(int(line.partition("-")[0], 16) for line in maps if f"memfd:channel {number} " in line)
        for lane in range(3):
            ctypes.memset(memory + (2 + 2 * lane) * LINE, 0xFF, 8)
        assert number in {row.channel for row in attached.kernel.channels.now("counter")}
