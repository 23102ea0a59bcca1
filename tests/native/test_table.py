"""The capability table: each refusal, and a reader that never sees half an entry."""

import ctypes
import mmap
import os
import time

import pytest

from atoll.native import Refusal, ffi, lib

from .core import Table, TableEntry, core

ENTRIES = 1024
SEGMENT = ENTRIES * 64
CHANNEL, GENERATION = 7, 3


class Segment:
    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SEGMENT)
        self.c = ffi.from_buffer(self.memory)
        self.table = Table()
        self.table.segments[0] = int(ffi.cast("uintptr_t", self.c))

    def write(self, slot: int, *, generation: int = GENERATION, expiry: int = 0) -> None:
        lib.atoll_entry_write(self.c, slot, CHANNEL, generation, 3, 42, expiry, 0, 0, 99)

    def check(
        self, slot: int, generation: int = GENERATION, channel: int = CHANNEL
    ) -> tuple[Refusal, TableEntry]:
        found = TableEntry()
        return Refusal(core().table_check(self.table, slot, generation, channel, found)), found


@pytest.fixture
def segment() -> Segment:
    made = Segment()
    made.write(5)
    return made


def test_a_good_capability_passes_with_what_the_table_says_of_it(segment: Segment) -> None:
    refusal, entry = segment.check(5)
    assert (refusal, entry.rights, entry.badge, entry.capability) == (Refusal.NOT, 3, 42, 99)


@pytest.mark.parametrize(
    ("slot", "generation", "channel", "why"),
    [
        (6, GENERATION, CHANNEL, Refusal.SLOT),
        (5 + ENTRIES, GENERATION, CHANNEL, Refusal.SLOT),
        (64 * ENTRIES, GENERATION, CHANNEL, Refusal.SLOT),
        (2**32 - 1, GENERATION, CHANNEL, Refusal.SLOT),
        (5, GENERATION, CHANNEL + 1, Refusal.CHANNEL),
        (5, GENERATION - 1, CHANNEL, Refusal.GENERATION),
        (5, GENERATION + 1, CHANNEL, Refusal.GENERATION),
        (5, 0, CHANNEL, Refusal.GENERATION),
    ],
)
def test_what_the_table_does_not_say_is_refused(
    segment: Segment, slot: int, generation: int, channel: int, why: Refusal
) -> None:
    assert segment.check(slot, generation, channel)[0] == why


def test_an_expired_capability_is_refused(segment: Segment) -> None:
    segment.write(5, expiry=time.monotonic_ns() - 1)
    assert segment.check(5)[0] == Refusal.EXPIRED


def test_a_revoked_entry_is_refused_and_shows_no_rights(segment: Segment) -> None:
    lib.atoll_entry_clear(segment.c, 5, GENERATION)
    refusal, entry = segment.check(5)
    assert (refusal, entry.rights, entry.badge) == (Refusal.GENERATION, 0, 0)


def test_an_entry_whose_writer_died_in_the_middle_reads_as_revoked(segment: Segment) -> None:
    memoryview(segment.memory).cast("Q")[5 * 8] |= 1
    assert segment.check(5)[0] == Refusal.GENERATION
    segment.write(5)
    assert segment.check(5)[0] == Refusal.NOT


def test_a_reader_beside_a_writer_sees_one_entry_or_the_other(segment: Segment) -> None:
    """Two states whose fields all agree; the writer, a process of its own, alternates between them without a pause."""
    stop = mmap.mmap(-1, 4096)

    def write(value: int) -> None:
        lib.atoll_entry_write(segment.c, 9, CHANNEL, GENERATION, value, value, 0, value, value, value)

    write(1)
    pid = os.fork()
    if pid == 0:
        value = 1
        while not stop[0]:
            value = 3 - value
            write(value)
        os._exit(0)
    seen = set()
    found = TableEntry()
    pointer = ctypes.byref(found)
    for _ in range(50_000):
        core().table_check(segment.table, 9, GENERATION, CHANNEL, pointer)
        if found.capability:
            state = {found.rights, found.badge, found.interface, found.service, found.capability}
            assert len(state) == 1
            seen |= state
    stop[0] = 1
    assert os.waitpid(pid, 0)[1] == 0
    assert seen <= {1, 2}
    assert seen
