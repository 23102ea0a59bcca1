"""Channels as the kernel keeps them: numbers, epochs, positions, and what is let go."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.system.control import Shape
from atoll.microkernel.channels import PER_LOOP, Channels
from atoll.microkernel.mechanisms import HostChance
from atoll.microkernel.notices import CLOSED, OPEN, RESTARTING
from atoll.microkernel.parties import Party

SMALL = Shape(lanes=1, ring_bits=12, bulk_bits=12)


def line(party: Party, index: int) -> tuple[int, int, int]:
    """Epoch, state and base as the process reads them."""
    words = memoryview(party.notice.memory.map)[(index + 1) * 64 : (index + 2) * 64].cast("Q")
    try:
        return words[1] & 0xFFFFFFFF, words[1] >> 32, words[2]
    finally:
        words.release()


@given(st.lists(st.integers(0, 3), max_size=40))
@settings(max_examples=30, deadline=None)
def test_numbers_never_come_again_and_share_no_remainder(steps: list[int]) -> None:
    """Step 0 closes the oldest channel, others make one to that server."""
    channels, party = Channels(HostChance()), Party(1, "client", "")
    made: list[int] = []
    for step in steps:
        live = list(channels)
        if step == 0 and live:
            channels.forget(live[0])
        elif channels.between(party, f"server {step}") is None:
            made.append(channels.make(party, f"server {step}", SMALL).number)
        assert len({channel.number % PER_LOOP for channel in channels}) == len(channels)
    assert made == sorted(set(made))
    for channel in list(channels):
        channels.forget(channel)
    party.close()


def test_a_dead_server_raises_the_epoch_and_moves_the_base() -> None:
    channels, party = Channels(HostChance()), Party(1, "client", "")
    channel = channels.make(party, "server", SMALL)
    assert line(party, channel.line) == (1, OPEN, channel.base)
    before = channel.base
    channel.server_died(channels.new_base())
    assert line(party, channel.line) == (2, RESTARTING, channel.base)
    assert channel.base != before and channel.base % 64 == 0
    channel.served_again()
    assert line(party, channel.line) == (2, OPEN, channel.base)
    channel.close_for_client()
    assert line(party, channel.line)[1] == CLOSED
    channel.served_again()
    assert line(party, channel.line)[:2] == (2, OPEN)
    channels.forget(channel)
    party.close()


def test_a_closed_channel_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    channels, party = Channels(HostChance()), Party(1, "client", "")
    for _ in range(20):
        channels.forget(channels.make(party, "server", SMALL))
    party.close()
    assert len(os.listdir("/proc/self/fd")) == before
