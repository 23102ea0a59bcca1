"""The root key, under which the keyring is sealed, and where it is kept.

It changes with each purge, so that an old keyring, which may lie in a block of the disk that nobody can overwrite, is sealed
under a key that is gone. While the ring is replaced there are two: the new one, and the one that opens what is there until
then. `begin` makes the new one durable beside the old, `end` forgets the old.
"""

from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from msgspec import Struct, structs

from atoll.ipc import chance
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.keys import KEY, KeysLocked, RootKind

from . import files

FILE: Final = "root.key"
SALT: Final = 16
PLACE: Final = 16
COST: Final = 1 << 15
"""Of scrypt: 32 MiB and some 0.1 s for each try at a passphrase."""


class Root(Protocol):
    kind: RootKind

    def locked(self) -> str:
        """Why there is no key; empty: there is one, or nothing was sealed yet."""
        ...

    def settled(self) -> bool:
        """Whether a ring is sealed under the newest key, and there is no other. Raises `KeysLocked`."""
        ...

    def keys(self) -> list[bytes]:
        """The keys that the ring may be sealed under, the newest first; none before the first `begin`. Raises
        `KeysLocked`."""
        ...

    def begin(self) -> bytes:
        """The key for the next ring; those that were stay until `end`. Raises `KeysLocked`, OSError."""
        ...

    def end(self) -> None:
        """The ring is sealed under the newest: forget the others. Raises OSError."""
        ...

    def stay(self, key: bytes) -> None:
        """What `begin` began came to nothing, or to its end: the ring is sealed under this key."""
        ...


class _Kept(Struct, frozen=True):
    keys: list[bytes] = []
    settled: bool = False


class FileRoot:
    """In a file that only the server's user can read."""

    kind: RootKind = "file"

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def locked(self) -> str:
        return ""

    def settled(self) -> bool:
        return self._kept().settled

    def keys(self) -> list[bytes]:
        return self._kept().keys

    def begin(self) -> bytes:
        new = chance.secret(KEY)
        self._keep(_Kept([new, *self.keys()]))
        return new

    def end(self) -> None:
        self._keep(_Kept(self.keys()[:1], settled=True))

    def stay(self, key: bytes) -> None:
        """Each ring gets a key of its own."""

    def _kept(self) -> _Kept:
        held = files.read(self._path)
        return _Kept() if held is None else msgspec.msgpack.decode(held, type=_Kept)

    def _keep(self, kept: _Kept) -> None:
        files.replace(self._path, msgspec.msgpack.encode(kept))


class _Salts(Struct, frozen=True):
    salts: list[bytes] = []
    """The newest first."""
    settled: bool = False
    place: bytes = b""
    """See `PassphraseRoot.place`."""


class Try(NamedTuple):
    """What a passphrase makes of one of the salts."""

    salt: bytes
    key: bytes


class PassphraseRoot:
    """Made of a text that is given once each time the server starts: a passphrase, which nobody keeps, or a secret in the
    machine's TPM. It cannot change with a purge, since nobody is asked then."""

    def __init__(self, folder: Path, kind: RootKind = "passphrase") -> None:
        self.kind: RootKind = kind
        self._path = folder / "root.salt"
        self._tries: list[Try] = []
        """Those that are in use, the newest first."""
        self._next: Try | None = None

    def locked(self) -> str:
        of = "a secret in the TPM" if self.kind == "tpm" else "a passphrase"
        return "" if self._tries else f"its root key is made of {of}"

    def settled(self) -> bool:
        return self._kept().settled

    def keys(self) -> list[bytes]:
        if not self._tries:
            raise KeysLocked(self.locked())
        return [each.key for each in self._tries]

    def begin(self) -> bytes:
        self.keys()
        if self._next is not None:
            salts = [self._next.salt, *(each.salt for each in self._tries)]
            self._keep(structs.replace(self._kept(), salts=salts, settled=False))
            self._tries.insert(0, self._next)
        return self._tries[0].key

    def end(self) -> None:
        self._tries, self._next = self._tries[:1], None
        kept = self._kept()
        settled = structs.replace(kept, salts=[self._tries[0].salt], settled=True)
        if kept != settled:
            self._keep(settled)

    def stay(self, key: bytes) -> None:
        self._tries, self._next = [each for each in self._tries if each.key == key], None

    def place(self) -> str:
        """The name under which its secrets lie in a TPM, which nodes of one name do not share; empty: of a root that was
        made when they did. Raises OSError."""
        kept = self._kept()
        if not kept.place and not kept.salts:
            kept = structs.replace(kept, place=chance.secret(PLACE))
            self._keep(kept)
        return kept.place.hex()

    def offer(self, passphrase: str) -> list[Try]:
        """What a passphrase makes here: of two salts where a change of it was cut short. Raises OSError."""
        kept = self._kept()
        if not kept.salts:
            kept = structs.replace(kept, salts=[chance.secret(SALT)])
            self._keep(kept)
        return [_derived(salt, passphrase) for salt in kept.salts]

    def take(self, tried: Try) -> None:
        """It opens the ring, or there is none yet."""
        self._tries = [tried]

    def change(self, passphrase: str) -> None:
        """The next `begin` is by another passphrase."""
        self._next = _derived(chance.secret(SALT), passphrase)

    def _kept(self) -> _Salts:
        held = files.read(self._path)
        return _Salts() if held is None else msgspec.msgpack.decode(held, type=_Salts)

    def _keep(self, kept: _Salts) -> None:
        files.replace(self._path, msgspec.msgpack.encode(kept))


def _derived(salt: bytes, passphrase: str) -> Try:
    if not passphrase:
        raise BadRequest("passphrase", "a text", "an empty one")
    return Try(salt, Scrypt(salt=salt, length=KEY, n=COST, r=8, p=1).derive(passphrase.encode()))
