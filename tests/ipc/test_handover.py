"""What an old version hands over is read by the kernel, and may be a lie."""

import os
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.errors import PeerMisbehaved
from atoll.ipc.system import control, handover
from atoll.ipc.system.control import HandedOver
from atoll.native import segments

WORD = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.binary(max_size=300), st.dictionaries(st.integers(0, 2**32), st.tuples(*[WORD] * 6), max_size=9))
def test_what_is_written_is_read(state: bytes, positions: handover.Positions) -> None:
    told, memory = handover.write(state, positions)
    assert handover.positions(told, memory) == positions
    assert handover.state(told.size, memory) == state
    os.close(memory)


def test_a_server_of_as_many_channels_as_there_may_be_hands_over() -> None:
    positions = {2**32 + number: (2**63 + number,) * 6 for number in range(4096)}
    told, memory = handover.write(b"", positions)
    assert len(control.encode(told)) < control.PACKET_LIMIT
    assert handover.positions(told, memory) == positions
    os.close(memory)


def _memory(data: bytes, *, sealed: bool = True) -> int:
    memory = os.memfd_create("lie", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, data)
    if sealed:
        segments.seal(memory, segments.SEALS["immutable"])
    return memory


def _pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


EMPTY = msgspec.msgpack.encode({})


@pytest.mark.parametrize(
    ("memory", "size", "positions", "told"),
    [
        (lambda: _memory(EMPTY, sealed=False), 0, 1, "its memory is not sealed"),
        (_pipe, 0, 1, "its memory is not sealed"),
        (lambda: os.open("/dev/zero", os.O_RDONLY), 0, 1, "its memory is not sealed"),
        (lambda: _memory(EMPTY), -1, 2, "a state of -1 bytes and positions of 2"),
        (lambda: _memory(EMPTY), 2, -1, "a state of 2 bytes and positions of -1"),
        (lambda: _memory(EMPTY), 0, 1 << 40, f"a state of 0 bytes and positions of {1 << 40}"),
        (lambda: _memory(EMPTY), 1 << 40, 1, "its memory has another size"),
        (lambda: _memory(EMPTY), 0, 0, "its memory has another size"),
        (lambda: _memory(b"\xc1"), 0, 1, "MessagePack data is malformed"),
        (lambda: _memory(b"\x80"), 1, 0, "Input data was truncated"),
        (lambda: _memory(b"\x91" * 9000 + b"\xc0"), 0, 9001, "Expected `object`, got `array`"),
    ],
)
def test_memory_that_is_not_what_was_told_is_misbehaviour(
    memory: Callable[[], int], size: int, positions: int, told: str
) -> None:
    descriptor = memory()
    with pytest.raises(PeerMisbehaved) as fault:
        handover.positions(HandedOver(size=size, positions=positions), descriptor)
    assert told in fault.value.check
    os.close(descriptor)
