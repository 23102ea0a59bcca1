"""On a real node whoever broke the protocol is named: by a row of what happened, and in the list of what was refused.
(Raw cffi.)"""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from atoll.ipc.attach import Node as Attached
from atoll.ipc.errors import PeerDied, PeerMisbehaved
from atoll.ipc.proxy import transport_of
from atoll.ipc.system import control
from atoll.ipc.system.records import EventRow, decode
from atoll.native import Kind, ffi, lib
from tests.microkernel.children import planned
from tests.microkernel.nodes import RealNode, booted, interface

PACKAGES = Path(__file__).parent / "packages"
sys.path.insert(0, str(PACKAGES))
from liar.interface import Liar  # noqa: E402

Counter = interface("counter", "Counter")
NORMAL = 1


def lied_to(folder: Path, level: str) -> AbstractContextManager[RealNode]:
    needs = 'counter = { server = "counter", rights = ["read"] }'
    more = f'[server.liar]\npackage = "{PACKAGES}/liar"\nneeds = {{ {needs} }}\n'
    return booted(folder, level=level, more=more)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with lied_to(tmp_path_factory.mktemp("node"), "process") as running:
        yield running


def events(attached: Attached) -> list[EventRow]:
    letter = EventRow.table
    page = attached.keyspace("kernel").range.now(letter, bytes([letter[0] + 1]))
    return [decode(EventRow, item.value) for item in page.items if item.value is not None]


def until_recorded(node: RealNode, kind: str, who: str, sentence: str) -> None:
    """Rows of what has happened are committed a little later, and nobody is told."""
    with node.attach() as attached:
        while not any(
            row.kind == kind and row.who == who and sentence in row.sentence for row in events(attached)
        ):
            os.sched_yield()


def until_listed(node: RealNode, who: str, what: str) -> None:
    with node.attach() as attached:
        while not any(row.by == "protocol" and row.what == what for row in attached.kernel.refused.now(who)):
            os.sched_yield()


def test_a_program_that_writes_what_no_client_may_is_named(node: RealNode) -> None:
    with node.attach() as attached, node.attach() as honest:
        counter, other = attached.open("counter", Counter), honest.open("counter", Counter)
        transport = transport_of(counter)
        channel, port = transport.channel, transport.port
        site = ffi.new("atoll_site *", {"slot": port.slot, "generation": port.generation, "lane": NORMAL,
                                        "kind": int(Kind.REPLY)})  # fmt: skip
        lib.atoll_send(channel.c, site, 1, b"", 0, 0, 0, ffi.NULL)
        lib.atoll_ring_bell(channel.c)
        with pytest.raises(PeerDied):  # the kernel has closed the channel
            counter.get.now("x")
        other.get.now("x")
        who = f"@{attached.welcome.attachment}"
        until_recorded(node, "misbehaved", who, f"between {who} and counter: kind")
        until_listed(node, who, "counter says that it broke the protocol: kind")


def test_a_server_that_answers_what_no_server_may_is_named(node: RealNode) -> None:
    with node.attach() as attached:
        liar = attached.open("liar", Liar)
        with pytest.raises(PeerMisbehaved, match="kind"):
            liar.lie.now()
        who = f"@{attached.welcome.attachment}"
        until_recorded(node, "misbehaved", "liar", f"between {who} and liar: kind")
        until_listed(node, "liar", f"{who} says that it broke the protocol: kind")


@pytest.mark.parametrize("slots", [1024, pytest.param(65_536, marks=pytest.mark.soak)])
@pytest.mark.parametrize("level", ["process", "seccomp", "sandbox"])
def test_a_server_that_forges_is_refused_every_time_and_named(tmp_path: Path, level: str, slots: int) -> None:
    """Every slot number, stale generations, other channels' slots, a right that it lacks, its own table by /proc."""
    if missing := planned(level).missing:
        pytest.skip(f"level {level} is not possible here: {'; '.join(map(str, missing))}")
    with lied_to(tmp_path, level) as node, node.attach() as attached:
        attached.open("counter", Counter).get.now("x")  # another channel's slot
        forged = attached.open("liar", Liar).forge.now(slots)
        assert forged.served == [] and forged.written == []
        assert forged.looked_at >= 2
        assert forged.turned_away == {"Revoked": forged.tried - 1, "NotAllowed": 1}
        listed: dict[str, int] = {}
        while sum(listed.values()) < forged.tried:
            rows = attached.kernel.refused.now("liar")
            listed = {row.what: row.count for row in rows if row.by == "capability"}
        assert sum(listed.values()) == forged.tried
        assert {
            what.partition(": ")[2] for what in listed
        } == {  # a flood is told by its reasons, without the methods
            "the capability is for another channel",
            "no such capability",
            "the capability was revoked",
            "the capability lacks the right or the class of service",
        }


def test_a_client_that_is_accused_waits_no_longer(node: RealNode) -> None:
    """Whatever a server says of it: a thread that waits inside the C core is told that the channel is closed."""
    with node.attach() as attached:
        with pytest.raises(PeerDied):
            attached.open("liar", Liar).accuse.now()
        until_listed(
            node, f"@{attached.welcome.attachment}", "liar says that it broke the protocol: nothing at all"
        )


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [(b"\xc1", "it broke the protocol"), (b"x" * (control.PACKET_LIMIT + 1), "a packet was cut short")],
)
def test_a_program_that_says_nonsense_to_the_kernel_is_named(
    node: RealNode, packet: bytes, sentence: str
) -> None:
    with node.attach() as attached:
        attached._control.socket.setblocking(True)
        attached._control.socket.send(packet)
        until_recorded(node, "ended", f"@{attached.welcome.attachment}", sentence)


def test_a_server_that_says_nonsense_to_the_kernel_is_ended_and_named(node: RealNode) -> None:
    with node.attach() as attached:
        attached.open("liar", Liar).babble.cast()
        until_recorded(node, "ended", "liar", "it broke the protocol: an unexpected Hello")
