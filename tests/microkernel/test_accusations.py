"""Who is blamed for what a channel's peer wrote, and who may blame.

The kernel's own parts on a channel of real memory; only the processes are missing.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from atoll.microkernel.accounts import CHANNEL, Ledger
from atoll.microkernel.authority import SMALL, Authority
from atoll.microkernel.channels import Channel, Channels
from atoll.microkernel.events import COUNT_MOST, Events
from atoll.microkernel.logs import Logs
from atoll.microkernel.mechanisms import HostChance
from atoll.microkernel.parties import KERNEL, Party


class Ground:
    """As much of a node, of its events and of its grants as it takes to end a channel."""

    def __init__(self) -> None:
        self.channels = Channels(HostChance())
        self.ledger = Ledger()
        self.kernel = Party(0, KERNEL, KERNEL)
        self.parties = {0: self.kernel}
        self.said: list[tuple[str, str]] = []
        self.loop = self
        self.authority = Authority(self, self, self, self)  # type: ignore[arg-type]

    def event(self, kind: str, who: str, sentence: str) -> None:
        self.said.append((kind, who))

    def refuse(self, who: str, by: str, what: str) -> None:
        self.said.append(("refused", who))

    def closed(self, channel: int) -> None:
        """Nothing was granted over it."""

    def remove(self, channel: int) -> None:
        """The kernel's own loop forgets a channel."""
        self.said.append(("forgotten", str(channel)))

    def fail(self, sentence: str) -> None:
        self.said.append(("ends", sentence))

    def channel(self, channel: Channel, closed: str) -> None:
        """Its row."""
        self.said.append(("closed", closed))

    def made(self, client: Party, server: str) -> Channel:
        self.ledger.charge_all(client.account, CHANNEL)
        return self.channels.make(client, server, SMALL)


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    for channel in list(made.channels):
        made.channels.forget(channel)
    made.kernel.close()


def test_the_peer_is_blamed_and_the_channel_ends(ground: Ground) -> None:
    client = Party(1, "teller", "all")
    for accuser, blamed in (("teller", "counter"), ("counter", "teller")):
        channel = ground.made(client, "counter")
        ground.authority.misbehaved(accuser, channel.number, "a length that cannot be")
        assert ground.said == [
            ("misbehaved", blamed),
            ("refused", blamed),
            ("closed", f"{blamed} broke the protocol: a length that cannot be"),
        ]
        ground.said.clear()
        assert ground.channels.get(channel.number) is None
    client.close()


def test_the_kernel_blames_the_server_that_it_calls(ground: Ground) -> None:
    channel = ground.made(ground.kernel, "state")
    host: Any = ground.authority._host
    host.misbehaved(channel.number, "a length that cannot be")
    why = "the kernel's channel to state is gone: state broke the protocol: a length that cannot be"
    assert ground.said == [
        ("misbehaved", "state"),
        ("refused", "state"),
        ("forgotten", str(channel.number)),
        ("closed", "state broke the protocol: a length that cannot be"),
        ("ends", why),
    ]


def test_nobody_blames_the_peer_of_another_channel(ground: Ground) -> None:
    client = Party(1, "teller", "all")
    channel = ground.made(client, "counter")
    ground.authority.misbehaved("liar", channel.number, "a length that cannot be")
    assert ground.said == [("refused", "liar")]
    assert ground.channels.get(channel.number) is channel
    ground.channels.forget(channel)
    client.close()


def test_however_often_somebody_is_blamed_that_can_be_told() -> None:
    """A server says how often it turned messages away, and whose."""
    nothing: Any = SimpleNamespace(put=lambda row: None)
    node: Any = SimpleNamespace(
        boot=1,
        now=lambda: 7,
        servers={},
        channels=SimpleNamespace(holder=lambda channel, server: "teller"),
        store=SimpleNamespace(batch=lambda note: nothing, later=lambda batch: None),
    )
    events = Events(node, Logs.__new__(Logs))
    most = (1 << 48) - 1
    for method in range(5):
        for _ in range(COUNT_MOST // most + 1):
            events.refused("liar", 3, method, "rights", most)
    assert {row.count for row in events.refusals("teller", 0)} == {COUNT_MOST}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(events.count("teller"))) == COUNT_MOST
