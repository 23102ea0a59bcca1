"""What handlers do to other servers, between real processes: nested calls, cycles, capabilities in messages, threads."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from atoll.ipc.errors import BadRequest, NotAllowed, WouldBlock

from .nodes import PACKAGES, RealNode, booted, interface

Relay = interface("relay", "Relay")
TEXT = f"""
[image]
name = "relay"

[node]
level = "process"

[server.state]
needs = {{}}

[server.ping]
package = "{PACKAGES}/relay"
watchdog = 2
needs = {{ other = {{ server = "pong", rights = ["say", "delegate"] }} }}

[server.pong]
package = "{PACKAGES}/relay"
needs = {{ other = {{ server = "ping", rights = ["say", "delegate"] }} }}
"""


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with booted(tmp_path_factory.mktemp("relays"), text=TEXT) as node:
        yield node


def test_a_cycle_of_calls_ends_and_bears_one_trace(relays: RealNode) -> None:
    with relays.attach() as attached:
        ping, pong = attached.open("ping", Relay), attached.open("pong", Relay)
        traces = ping.around.now(20)
        assert len(traces) == 21
        assert len(set(traces)) == 1
        assert pong.around.now(1) != ping.around.now(1)
        # Both servers wait for each other at once, many times over.
        futures = [server.many.start(30, 5) for server in (ping, pong) for _ in range(5)]
        assert [future.result() for future in futures] == [30 * 6] * 10


def test_a_plain_handler_that_would_block_is_told_at_once_and_its_server_goes_on(relays: RealNode) -> None:
    with relays.attach() as attached:
        ping = attached.open("ping", Relay)
        with pytest.raises(WouldBlock, match=r"Relay\.block made the blocking call Relay\.around\.now"):
            ping.block.now()
        assert len(ping.around.now(1)) == 2


def test_capabilities_pass_wherever_a_value_may_stand(relays: RealNode) -> None:
    with relays.attach() as attached:
        ping = attached.open("ping", Relay)
        box = ping.pack.now()
        assert (box.label, box.inner.label) == ("outer", "inner")
        for cap in (box.one, *box.more, box.named["x"], box.inner.one):
            assert len(cap.open().around.now(1)) == 2
        with pytest.raises(
            BadRequest, match="one of another server than pong, got one of pong's own objects"
        ):
            ping.send.now()
        with pytest.raises(
            NotAllowed, match="'delegate'"
        ):  # what was handed on is not handed on again unasked
            ping.open_all.now(box)


@pytest.mark.parametrize(
    ("of_server", "of_binding", "found"),
    [("normal", "control", "normal"), ("control", "bulk", "bulk"), ("bulk", "control", "bulk")],
)
def test_a_class_of_service_bounds_calls_and_whatever_is_derived(
    tmp_path: Path, of_server: str, of_binding: str, found: str
) -> None:
    """The lesser of what the caller asks, what the image gives the server, and what it gives the binding."""
    bound = 'rights = ["say", "delegate"]'
    text = TEXT.replace(bound, f'{bound}, service = "{of_binding}"', 1)
    text = text.replace("watchdog = 2", f'watchdog = 2\nservice = "{of_server}"')
    with booted(tmp_path, text=text) as node, node.attach() as attached:
        ping, pong = attached.open("ping", Relay), attached.open("pong", Relay)
        assert ping.beyond.now() == found
        handed_on = ping.pack.now().one.open()
        assert handed_on.with_(service="control").service.now() == found
        assert pong.with_(service="control").service.now() == "control"


def test_threads_of_a_server_give_way_often(relays: RealNode) -> None:
    with relays.attach() as attached:
        ping = attached.open("ping", Relay)
        assert ping.interval.now() == pytest.approx(1e-4)
        ping.crunch.now("cruncher")
        assert [len(ping.around.now(1)) for _ in range(20)] == [2] * 20


def test_threads_trio_and_asyncio_use_one_attachment(relays: RealNode) -> None:
    """As a notebook does, whose cells come from all of them; also two loops one after the other."""
    with relays.attach() as attached:
        ping = attached.open("ping", Relay)

        async def ask() -> int:
            return len(await ping.around(1))

        async def through_threads() -> int:
            return len(await trio.to_thread.run_sync(ping.around.now, 1))

        for _ in range(2):
            assert asyncio.run(ask()) == trio.run(ask) == trio.run(through_threads) == 2
            assert len(ping.around.now(1)) == 2

    async def inside() -> int:
        async with relays.attach() as node:
            return len(await node.open("ping", Relay).around(1))

    assert asyncio.run(inside()) == trio.run(inside) == 2
