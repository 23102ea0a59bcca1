"""A message may name only what was delivered for its own channel: tokens are small numbers that anyone can guess."""

import os

from atoll.ipc.buffer import Buffer
from atoll.ipc.capability import Cap
from atoll.ipc.interface import Interface, call
from atoll.ipc.runtime.deliveries import Deliveries, Translation
from atoll.ipc.system.control import Deliver, DeliverBuffer, Port
from atoll.native import segments

VICTIM, THIEF = 3, 4


class Door(Interface):
    @call("open")
    def open(self) -> None: ...


def sealed(text: bytes) -> int:
    memory = os.memfd_create("granted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, text)
    segments.seal(memory, segments.SEALS["immutable"])
    return memory


def given() -> Deliveries:
    deliveries = Deliveries({}, lambda: None, heard=True)
    port = Port(channel=9, slot=5, generation=1, interface="Door", rights=("open",))
    deliveries.deliver(Deliver(token=1, port=port, channel=VICTIM))
    told = DeliverBuffer(token=2, size=6, mode="immutable", channel=VICTIM)
    deliveries.deliver_buffer(told, sealed(b"secret"))
    return deliveries


def received(deliveries: Deliveries, channel: int) -> tuple[Cap[Door] | None, Buffer | None]:
    translation = Translation(deliveries, lambda: channel)
    port = deliveries.port(1, channel)
    cap = None if port is None else Cap(Door, None)  # type: ignore[arg-type]
    return cap, translation.receive_buffer(2)


def test_another_clients_token_names_nothing() -> None:
    assert received(given(), THIEF) == (None, None)


def test_a_guess_takes_nothing_from_whom_it_was_meant_for() -> None:
    deliveries = given()
    received(deliveries, THIEF)
    cap, buffer = received(deliveries, VICTIM)
    assert cap is not None and buffer is not None and bytes(buffer.view) == b"secret"


def test_what_a_process_was_given_for_itself_no_message_names() -> None:
    deliveries = Deliveries({}, lambda: None, heard=True)
    deliveries.deliver_buffer(DeliverBuffer(token=2, size=6, mode="immutable"), sealed(b"secret"))
    assert Translation(deliveries, lambda: THIEF).receive_buffer(2) is None
    assert deliveries.buffer(2) is not None


def test_a_buffer_shared_over_two_channels_is_named_by_both() -> None:
    deliveries = given()
    told = DeliverBuffer(token=2, size=6, mode="immutable", channel=THIEF)
    deliveries.deliver_buffer(told, sealed(b"secret"))
    assert received(deliveries, VICTIM)[1] is received(deliveries, THIEF)[1] is not None


def test_nothing_is_kept_of_what_a_channel_that_is_gone_never_named() -> None:
    """A client could have a server keep more and more, by leaving before it named what it had passed."""
    deliveries = given()
    deliveries.closed(VICTIM)
    assert received(deliveries, VICTIM) == (None, None)
