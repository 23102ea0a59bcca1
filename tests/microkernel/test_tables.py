"""What only the kernel may write, nobody else can: tables, notices, granted memory."""

import mmap
import os
from pathlib import Path

import pytest

from atoll.microkernel.accounts import Ledger
from atoll.microkernel.capabilities import Tree
from atoll.microkernel.memory import Memory
from atoll.microkernel.notices import CHANNELS_MOST, CLOSED, OPEN, Notice, Status
from atoll.microkernel.tables import ENTRIES, ENTRY, Table


def reopened(descriptor: int) -> int:
    """A descriptor of the same memory as a process gets one that opens it anew through /proc."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)


def test_nobody_but_the_kernel_gets_a_writable_mapping() -> None:
    memory = Memory("test", 4096)
    for descriptor in (os.dup(memory.descriptor), reopened(memory.descriptor)):
        with pytest.raises(PermissionError):
            mmap.mmap(descriptor, 4096)
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)
    memory.map[:5] = b"still"  # the kernel's own mapping is older than the seal
    with mmap.mmap(memory.descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ) as seen:
        assert seen[:5] == b"still"
    memory.close()


def test_what_a_process_writes_itself_keeps_its_size() -> None:
    status = Status("test")
    with mmap.mmap(status.memory.descriptor, 4096) as own:
        own[:8] = (7).to_bytes(8, "little")
        assert status.window() == 7
    with pytest.raises(PermissionError):
        os.ftruncate(status.memory.descriptor, 1)
    status.close()


def test_an_entry_says_what_the_tree_says_and_nothing_once_cleared() -> None:
    tree = Tree(1, Ledger())
    root, _ = tree.offer("counter", "Counter", ("read", "write"))
    made = tree.mint(root.id, by="counter", to="@1", badge=42, rights={"write"})
    table = Table("counter")
    assert list(table.make_room(made.slot)) == []
    table.write(made, channel=9, interface=0, rights=("read", "write"), service=1, now=0)
    words = memoryview(table.segments[0].map)[made.slot * ENTRY : (made.slot + 1) * ENTRY].cast("Q")
    assert words[0] % 2 == 0
    assert (words[1] & 0xFFFFFFFF, words[1] >> 32) == (9, made.generation)
    assert (words[2], words[3], words[6]) == (0b10, 42, made.id)
    table.clear(made)
    assert (words[2], words[6]) == (0, 0)
    assert words[1] >> 32 == made.generation  # so that its holder is told "revoked", not "no such slot"
    words.release()
    table.close()


def test_a_table_grows_by_segments() -> None:
    table = Table("counter")
    assert list(table.make_room(ENTRIES - 1)) == []
    assert list(table.make_room(2 * ENTRIES)) == [1, 2]
    assert len(table.segments) == 3
    table.close()


def test_a_notice_has_a_line_a_channel_and_takes_it_back_last() -> None:
    notice = Notice("test")
    first, second = notice.take(), notice.take()
    assert first != second
    notice.channel(first, 2, OPEN, 64, (1, 2, 3))
    words = memoryview(notice.memory.map)[(first + 1) * 64 : (first + 2) * 64].cast("Q")
    assert (words[1] & 0xFFFFFFFF, words[1] >> 32, words[2], tuple(words[3:6])) == (2, OPEN, 64, (1, 2, 3))
    notice.channel(first, 2, CLOSED, 64)
    assert words[1] >> 32 == CLOSED
    words.release()
    notice.give_back(first)
    # A client may look at a closed channel's line until it has heard of the end: it is the last to be used again.
    taken = [notice.take() for _ in range(CHANNELS_MOST - 1)]
    assert taken[-1] == first and len(set(taken)) == len(taken)
    notice.close()


def test_memory_that_cannot_be_had_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"."):
        Memory("impossible", -4096)
    assert len(os.listdir("/proc/self/fd")) == before
