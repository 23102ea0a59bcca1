"""Who makes the memory behind regions: the seam to the kernel.

In a node every descriptor travels through the kernel, which makes, seals and passes buffers; a server
only names them. The server knows no more than this Protocol, so what makes buffers is decided where it
starts.
"""

from typing import Literal, Protocol

from atoll.ipc.capability import Buffer

Mode = Literal["writable", "readonly", "immutable"]


class Buffers(Protocol):
    """Makes and takes back memory. `handle` names a buffer to the maker and to nobody else."""

    async def make(self, size: int) -> int:
        """A buffer of `size` bytes of zeros, preallocated and sealed against shrinking and growing; its
        handle.

        Raises QuotaExceeded when the server's own account has no more.
        """
        ...

    async def view(self, handle: int, mode: Mode) -> Buffer:
        """The buffer as it may stand in a reply: whoever gets the reply has it mapped."""
        ...

    async def seal(self, handle: int) -> int:
        """The same content, immutable for good; its handle from now on (another one if it had to be
        copied).
        """
        ...

    async def release(self, handle: int) -> None:
        """Take it back. Read-only mappings of a buffer that is not sealed read zeros from now on."""
        ...
