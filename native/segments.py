"""Seals of memfds: what a receiver demands of memory before it reads in place."""

import fcntl
from typing import Final

F_SEAL_SEAL: Final = 0x01
F_SEAL_SHRINK: Final = 0x02
F_SEAL_GROW: Final = 0x04
F_SEAL_WRITE: Final = 0x08
F_SEAL_FUTURE_WRITE: Final = 0x10

SIZE: Final = F_SEAL_SHRINK | F_SEAL_GROW
SEALS: Final = {
    "writable": SIZE | F_SEAL_SEAL,
    "readonly": SIZE | F_SEAL_SEAL | F_SEAL_FUTURE_WRITE,
    "immutable": SIZE | F_SEAL_SEAL | F_SEAL_WRITE,
}
"""By a grant's mode. Without the seal against writing an `O_RDONLY` descriptor could be opened again for writing."""
DEMANDED: Final = {mode: seals & ~F_SEAL_SEAL for mode, seals in SEALS.items()}
"""What a receiver looks for. That no seal can be added is the kernel's concern: none can be taken off."""


def seals(memory: int) -> int:
    """The seals of a memfd. OSError if it is none."""
    return fcntl.fcntl(memory, fcntl.F_GET_SEALS)


def seal(memory: int, wanted: int) -> None:
    """Add seals. OSError (EBUSY) for F_SEAL_WRITE while a writable mapping is left."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, wanted)
