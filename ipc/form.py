"""How a keyspace writes its values down. `Form` is the plain way, MessagePack; a private keyspace's seals them
(`private/sealed.py`).

A value goes through two hands: `draft` makes bytes of it at once, so that what the caller does to it afterwards changes
nothing; `written` makes of these what the store gets, and may need a key that has to be asked for first (`before`).
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")


class Draft(NamedTuple):
    """A value as bytes, and whom it is about, where that matters."""

    packed: bytes
    subject: str = ""


class NotReady(Exception):
    """What is read needs a key that is not here: `ready` gets it."""


class Form(Generic[T]):
    waits: ClassVar[bool] = False
    """Whether a write may have to wait until it can be written down."""

    def __init__(self, kind: Any) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode: Callable[[bytes], T] = msgspec.msgpack.Decoder(kind).decode

    def draft(self, value: T) -> Draft:
        """Raises what msgspec raises for a value that is not of the keyspace's type: once it were written, nobody could read
        it, and whoever follows the keyspace would end over it, again and again."""
        return Draft(self._packed(value))

    def _packed(self, value: T) -> bytes:
        packed = self.encode(value)
        self.decode(packed)
        return packed

    def meant(self, draft: Draft) -> T:
        """The value of a draft."""
        return self.decode(draft.packed)

    def written(self, key: bytes, draft: Draft) -> bytes:
        """What the store gets at that key."""
        return draft.packed

    def read(self, key: bytes, packed: bytes) -> T:
        """What the store has at that key. Raises `Purged` where that cannot be read any more, and NotReady where `ready`
        has to be asked first."""
        return self.decode(packed)

    def before(
        self,
        drafts: Iterable[Draft],
        packed: Iterable[bytes],
        go: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Has `go` called once these drafts can be written and these bytes be read: at once where they can; else what it
        raises goes to `failed`, too."""
        go()

    async def ready(self, drafts: Iterable[Draft] = (), packed: Iterable[bytes] = ()) -> None:
        """Returns once they can."""
