"""Mapping of granted memory, whatever was sealed and however large it is: what is mapped cannot be taken away, and what may
only be read cannot change under its reader."""

import fcntl
import mmap
import os
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.ipc.errors import Overloaded, PeerMisbehaved
from atoll.ipc.runtime.deliveries import Deliveries
from atoll.ipc.system.control import DeliverBuffer
from atoll.native import segments
from atoll.native.segments import F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE

PAGE = 4096
SEALS = (F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE)
MODES = st.sampled_from(["writable", "readonly", "immutable"])


def attack(memory: int, size: int) -> None:
    """All that the holder of a descriptor can do to those who have it mapped."""
    for action in (
        lambda: os.ftruncate(memory, 0),
        lambda: os.ftruncate(memory, size + PAGE),
        lambda: os.pwrite(memory, b"\xff" * min(size, PAGE), 0),
        lambda: mmap.mmap(memory, PAGE).write(b"\xff"),
        lambda: fcntl.fcntl(memory, fcntl.F_ADD_SEALS, F_SEAL_WRITE),
    ):
        with suppress(OSError, ValueError):
            action()
    with suppress(OSError):
        again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        with suppress(OSError, ValueError):
            os.ftruncate(again, 0)
        with suppress(OSError):
            os.pwrite(again, b"\xff", 0)
        os.close(again)


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 3 * PAGE),
    claimed=st.one_of(st.integers(1, 3 * PAGE), st.integers(1, 1 << 62)),
    seals=st.sets(st.sampled_from(SEALS)),
    mode=MODES,
    memfd=st.booleans(),
)
def test_what_is_mapped_stays_and_what_is_read_only_does_not_change(
    size: int, claimed: int, seals: set[int], mode: str, memfd: bool
) -> None:
    deliveries = Deliveries({}, lambda: None, heard=True)
    if memfd:
        memory = os.memfd_create("granted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(memory, b"\x01" * size)
        segments.seal(memory, sum(seals))
    else:
        memory = os.open("/dev/zero", os.O_RDWR)
    held = os.dup(memory)
    told = DeliverBuffer(token=1, size=claimed, mode=mode, channel=0)  # type: ignore[arg-type]
    good = memfd and sum(seals) & segments.DEMANDED[mode] == segments.DEMANDED[mode] and claimed <= size
    if mode == "writable" and seals & {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE}:
        good = False  # Linux maps it no more
    try:
        deliveries.deliver_buffer(told, memory)
        found = deliveries.buffer(1)  # what could not be mapped is told to whoever asks for it
    except (PeerMisbehaved, Overloaded, OSError):
        assert not good
    else:
        assert good
        assert found is not None
        assert len(found) == claimed
        attack(held, size)
        read = bytes(found.view)  # with SIGBUS this process would end
        if mode != "writable":
            assert read == b"\x01" * claimed
            assert found.view.readonly
        found.view.release()
    finally:
        os.close(held)
