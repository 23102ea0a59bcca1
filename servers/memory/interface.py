"""What others may ask of the memory server: regions that are mapped, not sent.

A region begins open: its owner has it mapped writable. Whoever is handed a share of it may `open` it, and maps
the same memory: a writable share is for clients that trust each other, a reader sees what is written and cannot
write. Once a region has a reader it takes no further writer. Sealed, nobody can write it any more. An open
region dies with its owner, and whoever else has it mapped reads zeros; a sealed one lives until its last holder
releases it or dies. Regions outlive the server's process, and end with the node.
"""

from msgspec import Struct

from atoll.ipc.buffer import Buffer
from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call


class Region(Struct, frozen=True):
    number: int
    size: int
    """Bytes, in whole pages."""
    buffer: Buffer
    """The memory itself, mapped in the caller's process."""


class Share(Struct, frozen=True):
    """What to hand to another client so that it may `open` a region. `key` is good for as long as the
    region is, and says in which way.
    """

    region: int
    key: bytes


class Holding(Struct, frozen=True):
    """A region of the caller's."""

    number: int
    size: int
    owned: bool
    sealed: bool
    holders: int


class Statistics(Struct, frozen=True):
    """Of the whole server. Sizes in bytes. `reclaimed`: regions taken back because their holders died; like `refused`
    since this process began."""

    pool: int
    used: int
    regions: int
    clients: int
    reclaimed: int
    refused: int


class NotShared(Failure, frozen=True, kw_only=True):
    """There is no such share: the region ended, or the key is wrong."""

    region: int

    @property
    def message(self) -> str:
        return (
            f"region {self.region} is not shared under this key, or has ended: ask its owner for a new share"
        )


class HasReaders(Failure, frozen=True, kw_only=True):
    """Nobody who does not map the region writable already can have it so any more."""

    region: int

    @property
    def message(self) -> str:
        return f"region {self.region} has readers and takes no further writer: open writable shares before the first other"


class Memory(Interface):
    """Regions of memory. Rights: `allocate` (and what an owner does), `open` (shares), `read`. Never
    leaves a node.
    """

    errors = (NotShared, HasReaders)

    @call("allocate", local=True)
    def allocate(self, size: int) -> Region:
        """A region of zeros, `size` bytes rounded up to pages. Raises QuotaExceeded, BadRequest (a size
        of 0 or less).
        """

    @call("open", idempotent=True, local=True)
    def map(self, region: int) -> Region:
        """A region that the caller holds, once more: writable for its owner, and for whoever opened a
        writable share, while it is open.
        """

    @call("allocate", idempotent=True, local=True)
    def seal(self, region: int) -> Region:
        """Make the owner's region immutable. What comes back replaces every mapping made before, which
        reads zeros from now on.
        """

    @call("allocate", idempotent=True, local=True)
    def share(self, region: int, writable: bool = False) -> Share:
        """Allow whoever has the share to open the owner's region."""

    @call("open", idempotent=True, local=True)
    def open(self, share: Share) -> Region:
        """Hold a shared region; it is charged to the caller as well. Raises NotShared, QuotaExceeded, HasReaders (a
        writable share after a reader came).
        """

    @call("open", local=True)
    def release(self, region: int) -> bool:
        """Let go of a region, and unmap it; whether that ended it. Raises NotFound."""

    @call("read", idempotent=True)
    def mine(self) -> list[Holding]: ...

    @call("read", idempotent=True)
    def statistics(self) -> Statistics: ...
