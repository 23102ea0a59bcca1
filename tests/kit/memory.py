"""Shared memory made, sealed and mapped as the kernel does it. (Raw cffi.)"""

import mmap
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from atoll.ipc.system.control import Shape
from atoll.native import ffi, lib, segments

_CLOEXEC = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


class Segment:
    """Memory that only the test, as the kernel, can write (or, "writable", one that the other side writes)."""

    def __init__(self, name: str, size: int, mode: str = "readonly") -> None:
        self.descriptor = os.memfd_create(name, _CLOEXEC)
        os.ftruncate(self.descriptor, size)
        self.memory = mmap.mmap(self.descriptor, size)
        segments.seal(self.descriptor, segments.SEALS[mode])
        self.c = ffi.from_buffer(self.memory)
        self.words = memoryview(self.memory).cast("Q")

    def close(self) -> None:
        self.words.release()
        os.close(self.descriptor)


@dataclass
class Memory:
    """One channel's memory and its doorbell, both ends, as the kernel keeps them."""

    number: int
    shape: Shape
    index: int
    """Of its line in the client's notice."""
    epoch: int = 1
    base: int = 0
    closed: bool = False
    descriptor: int = field(init=False)
    mapped: mmap.mmap = field(init=False)

    def __post_init__(self) -> None:
        size = lib.atoll_channel_size(self.shape.lanes, self.shape.ring_bits, self.shape.bulk_bits)
        self.descriptor = os.memfd_create(f"channel {self.number}", _CLOEXEC)
        os.ftruncate(self.descriptor, size)
        segments.seal(self.descriptor, segments.SIZE | segments.F_SEAL_SEAL)
        self.mapped = mmap.mmap(self.descriptor, size)
        self.c: Any = ffi.from_buffer(self.mapped)
        self.client_bell, self.server_bell = socket.socketpair()
        self.base = fresh_base()

    def taken(self) -> Any:
        """How far the server had taken each lane's requests (a C array of three)."""
        taken = ffi.new("uint64_t[3]")
        lib.atoll_memory_taken(self.c, self.shape.lanes, taken)
        return taken

    def wake_client(self) -> None:
        lib.atoll_memory_wake(self.c, 1, self.server_bell.fileno())

    def wake_server(self) -> None:
        lib.atoll_memory_wake(self.c, 0, self.client_bell.fileno())

    def close(self) -> None:
        os.close(self.descriptor)
        self.client_bell.close()
        self.server_bell.close()


def fresh_base() -> int:
    """Where an epoch's positions may start. Below 2^62: positions travel as signed numbers in the C face."""
    return int.from_bytes(os.urandom(8), "little") >> 2 & ~63
