"""A keyspace in memory: what `Keyspace.local` gives.

The view follows the store's feed. `revision` says up to where it is complete: everything at or before it is
in the view. What this process itself has written by `put`, `append`, `update` and `delete`, or in a step, is in the
view as soon as it is committed (read-your-writes), even before the feed brings it; that never makes a key older,
because each key remembers the revision of what the view holds of it, deletions too until the feed has passed them.
What a transaction wrote comes by the feed.

Keys come back as `str` (UTF-8, with lone surrogates for bytes that are none, as `os.fsdecode` has it).
"""

from collections.abc import ItemsView, Iterator
from typing import Final, Generic, TypeVar, overload

from .errors import BadRequest

T = TypeVar("T")
D = TypeVar("D")


RESERVED: Final = b"\xff"
"""Keys of a keyspace from here on are the SDK's own: its rows lie beside those of the server that they belong to, so that
both are written in one commit. No UTF-8 begins so."""


def encode_key(key: str | bytes) -> bytes:
    """A key as the store has it. `BadRequest` for one of the SDK's own."""
    raw = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
    if raw >= RESERVED:
        raise BadRequest("a keyspace's key", "one that begins with another byte than 0xff", repr(raw[:20]))
    return raw


def after_prefix(prefix: bytes) -> bytes:
    """The first key that no key with the prefix reaches."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else RESERVED


def decode_key(key: bytes) -> str:
    """A key as programs have it; `encode_key` of it gives the same bytes again."""
    return key.decode("utf-8", "surrogateescape")


class LocalView(Generic[T]):
    """Plain, synchronous reads; never blocks. Iteration is over keys, in no particular order."""

    __slots__ = ("_gone", "_revisions", "_values", "revision")

    def __init__(self) -> None:
        self.revision = 0
        """The view has everything up to this revision of the store."""
        self._values: dict[str, T] = {}
        self._revisions: dict[str, int] = {}
        self._gone: dict[str, int] = {}

    @overload
    def get(self, key: str | bytes) -> T | None: ...
    @overload
    def get(self, key: str | bytes, default: D) -> T | D: ...
    def get(self, key: str | bytes, default: D | None = None) -> T | D | None:
        return self._values.get(key if isinstance(key, str) else decode_key(key), default)

    def __getitem__(self, key: str | bytes) -> T:
        return self._values[key if isinstance(key, str) else decode_key(key)]

    def __contains__(self, key: str | bytes) -> bool:
        return (key if isinstance(key, str) else decode_key(key)) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, T]:
        return self._values.items()

    def revision_of(self, key: str | bytes) -> int:
        """The revision of the key's last write as the view has it; 0 if there is no such key."""
        return self._revisions.get(key if isinstance(key, str) else decode_key(key), 0)

    def put(self, key: str, value: T, revision: int) -> None:
        """For the keyspace: a write at a revision; ignored if the view holds a later one. Of one revision what is said last
        stands: a step may write a row more than once, and another after it; the feed says what that came to."""
        if revision >= self._revisions.get(key, 0) and revision >= self._gone.get(key, 0):
            self._values[key] = value
            self._revisions[key] = revision
            self._gone.pop(key, None)

    def delete(self, key: str, revision: int) -> None:
        """For the keyspace: a deletion at a revision; ignored if the view holds a later write. See `put`."""
        if revision >= self._revisions.get(key, 0):
            self._values.pop(key, None)
            self._revisions.pop(key, None)
            if revision > self.revision:
                self._gone[key] = max(revision, self._gone.get(key, 0))

    def wrote(self, key: str, value: T, revision: int) -> None:
        """For the keyspace: an own write, before the feed brings it. Where the feed has come as far the view knows
        better: another may have deleted the key since."""
        if revision > self.revision:
            self.put(key, value, revision)

    def erased(self, key: str, revision: int) -> None:
        """For the keyspace: an own deletion, like `wrote`."""
        if revision > self.revision:
            self.delete(key, revision)

    def pass_to(self, revision: int) -> None:
        """For the keyspace: the feed has brought everything up to a revision."""
        self.revision = revision
        if self._gone:
            self._gone = {key: at for key, at in self._gone.items() if at > revision}
