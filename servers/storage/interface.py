"""What others may ask of the storage server: blobs by the hash of their content.

A blob is named by blake2b-256 of its bytes, so a put is idempotent and content can be checked by whoever
reads it. A blob lives as long as something refers to it (`refer`), and for a grace time after it was put,
referred to or released; so the order is: put, then refer within the grace, then write the row that needs
it.
"""

import hashlib
from typing import Protocol

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream, upload
from atoll.ipc.system.state import StoreFull

HASH_BYTES = 32

Address = bytes
Content = bytes | bytearray | memoryview


class Hash(Protocol):
    def update(self, data: Content, /) -> None: ...
    def digest(self) -> bytes: ...


def blob_hash(content: Content = b"") -> Hash:
    """The running hash whose digest addresses a blob."""
    return hashlib.blake2b(content, digest_size=HASH_BYTES)


class BlobRef(Struct, frozen=True, array_like=True):
    """A blob's address and its size in bytes."""

    hash: bytes
    size: int

    @classmethod
    def of(cls, content: bytes) -> "BlobRef":
        """The reference that `content` has, put or not."""
        return cls(blob_hash(content).digest(), len(content))

    def __str__(self) -> str:
        return f"blob {self.hash.hex()[:16]} ({self.size} bytes)"


class Stat(Struct, frozen=True):
    size: int
    packed: bool
    """Shares a pack with other small blobs; else it has a file of its own."""
    spared: float
    """Seconds for which it is safe from collection even if nothing refers to it."""


class Piece(Struct, frozen=True, array_like=True):
    """Part of a blob's content; `end` is where the next piece begins: the position to resume from."""

    end: int
    data: bytes


class Damage(Struct, frozen=True):
    hash: bytes
    offset: int
    """Of the first chunk that is not what was written."""


class Scrubbed(Struct, frozen=True):
    """What `verify` read: every byte of `blobs` blobs."""

    blobs: int
    bytes: int
    damaged: list[Damage]
    missing: list[Address] = []
    """Addresses that reference rows name and no file holds (any more)."""
    strangers: list[str] = []
    """Files in the folder that are none of ours, the first hundred: they are left alone."""
    further: int = 0
    """Damaged and missing ones that the lists, of a thousand each at most, leave out."""


class Collected(Struct, frozen=True):
    """What `collect` removed, and what it kept although nothing refers to it, because its grace had not
    passed.
    """

    blobs: int
    bytes: int
    spared: int


class Statistics(Struct, frozen=True):
    puts: int
    """Blobs that were new; `duplicates` were there already."""
    duplicates: int
    written: int
    """Bytes of content written."""
    read: int
    syncs: int
    """Files made durable: one a large blob, one a group of small ones."""
    packs: int
    packed: int
    """Small blobs in packs."""
    damaged: int
    """Blobs found damaged since the start and not yet mended by a new put."""
    priorities: bool
    """Whether the host applies I/O classes by service; else only their separate queues count."""


class Corrupt(Failure, frozen=True, kw_only=True):
    """What lies on the disk is not what was written: bit rot, a cut file, or one under another's name."""

    hash: bytes
    offset: int

    @property
    def message(self) -> str:
        return (
            f"blob {self.hash.hex()} is damaged on disk at offset {self.offset}: expected the content that"
            " was put, got other bytes; put the same content again to mend it, or restore it from a copy"
        )


class NoSuchBlob(Failure, frozen=True, kw_only=True):
    """No blob has this address; `index` is its place among those asked for."""

    hash: bytes
    index: int = 0

    @property
    def message(self) -> str:
        return (
            f"no blob has the address {self.hash.hex()} (number {self.index} of those asked for): put it"
            " first, and refer to it before its grace is over"
        )


class WrongSize(Failure, frozen=True, kw_only=True):
    """A blob that was referred to has another size than was said; nothing was changed."""

    hash: bytes
    index: int
    expected: int
    got: int

    @property
    def message(self) -> str:
        told = f"blob {self.hash.hex()} (number {self.index}) has {self.got} bytes, expected {self.expected}"
        return f"{told}: nothing was changed, refer to it with the size that its put returned"


class WrongContent(Failure, frozen=True, kw_only=True):
    """An upload did not have the hash it was announced with; nothing was kept."""

    expected: bytes
    got: bytes

    @property
    def message(self) -> str:
        told = f"expected content with the hash {self.expected.hex()}, got {self.got.hex()}"
        return f"{told}: nothing was kept, put it again"


class DiskFull(Failure, frozen=True, kw_only=True):
    """The folder's disk took no more; nothing of this put was kept."""

    size: int

    @property
    def message(self) -> str:
        told = f"the disk is full after {self.size} bytes of this put"
        return f"{told}: nothing of it was kept; free space or collect"


class Storage(Interface):
    """Content-addressed blobs. Rights: `read`, `write` (put and refer), `maintain` (collect and verify)."""

    errors = (Corrupt, NoSuchBlob, WrongSize, WrongContent, DiskFull, StoreFull)

    @upload("write", item=bytes)
    def put(self, expected: bytes = b"") -> BlobRef:
        """Store the uploaded bytes; durable when the reply comes. `expected`: refuse other content than
        of this hash.
        """

    @call("write", idempotent=True)
    def put_many(self, blobs: list[bytes]) -> list[BlobRef]:
        """Store small blobs (64 KiB at most each), durable together by one fsync; all or none are kept."""

    @stream("read", position=int)
    def get(self, hash: bytes, after: int = 0, until: int = -1) -> Piece:
        """The content from offset `after` to offset `until` (-1: the end); every piece was proved before
        it was sent. What lies behind the end is empty.
        """

    @call("read", idempotent=True)
    def get_many(self, hashes: list[bytes]) -> list[bytes]:
        """The contents of small blobs, in the order asked for; 8 MiB in all at most."""

    @call("read", idempotent=True)
    def stat(self, hash: bytes) -> Stat: ...

    @call("write", idempotent=True)
    def refer(self, hashes: list[bytes], owner: str, name: str, sizes: list[int] = []) -> int:  # noqa: B006
        """Keep these blobs for as long as the row (owner, name) of this caller's badge stands; replaces
        what it held. `sizes`, if given: how many bytes each must have.

        Returns the store's revision of the row. Raises NoSuchBlob or WrongSize (index) or QuotaExceeded,
        and then changes nothing. Not under a transaction, nor is `release`: no blob waits for the end of one.
        """

    @call("write", idempotent=True)
    def release(self, owner: str, name: str) -> bool:
        """Remove the row (owner, name) of this caller's badge; whether it was there. The grace of its
        blobs starts now.
        """

    @call("read", idempotent=True)
    def references(self, owner: str, after: str = "", limit: int = 1000) -> list[str]:
        """The names under which `owner` (of this caller's badge) holds blobs, in order, from the one after
        `after`.
        """

    @call("maintain", service="bulk")
    def collect(self) -> Collected:
        """Remove what nothing refers to and whose grace is over."""

    @call("maintain", service="bulk")
    def verify(self) -> Scrubbed:
        """Read and prove every byte of every blob, and that there is one for each address referred to."""

    @call("read", idempotent=True)
    def statistics(self) -> Statistics: ...
