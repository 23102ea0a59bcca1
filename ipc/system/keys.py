"""The interface of the server that keeps the keys of private keyspaces.

A capability with a badge is for one keyspace (its name's number), and goes with the need of whoever holds that keyspace. The
unbadged one is a person's: it purges in all keyspaces and looks after the keyring, and is given no key.

Rights: `use` is given data keys, `purge` destroys them, `admin` changes the root key and unlocks the keyring,
`observe` reads how it stands.

A *subject* (a rater, a conversation) is named by its *tag*, a keyed hash of its name: 16 bytes. It has a data key in
each *generation* of seeds, named by its *label*: the generation in one byte, then the tag.
"""

import hmac
from hashlib import sha256
from typing import Literal

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream

SERVER = "keys"
"""The name of the server that offers it, in every image with a private keyspace."""
TAG = 16
LABEL = 1 + TAG
KEY = 32
SUBJECT_MOST = 400
"""Bytes of a subject's name at most, for who writes about it as for who purges it."""
AT_ONCE = 1000
"""Data keys that are asked for at a time at most."""

RootKind = Literal["file", "passphrase", "tpm"]
"""Where the root key is: in a file beside the keyring, in a person's head, in the machine's TPM."""


def hashed(index: bytes, kind: bytes, text: str) -> bytes:
    """A hash of a text that nobody can make who has not the keyspace's index key."""
    return hmac.digest(index, kind + b"\0" + text.encode(), sha256)


def tag_of(index: bytes, subject: str) -> bytes:
    return hashed(index, b"subject", subject)[:TAG]


class Told(Struct, array_like=True, frozen=True):
    """On the stream `hold`: first what the holder of a keyspace works with, then each purge."""

    position: int
    """The number of the last purge that this one knows of, or of this purge."""
    badge: int = 0
    index: bytes = b""
    """The key of the keyspace's hashes: of tags, and of what its server has hashed."""
    purged: bytes = b""
    """The tag of who was purged; else empty."""
    generation: int = 0
    """By whose keys is sealed from now on."""


class Purge(Struct, frozen=True, kw_only=True):
    """A purge that was made."""

    number: int
    """Purges of a node are numbered; this one's, or the earlier one's that it repeats."""
    time: int
    """When it was made, in ns."""
    keyspaces: int
    """In how many keyspaces."""
    repeated: bool = False
    """All of it was purged before."""
    holding: list[str] = []
    """Servers that have not said that they let go of the key: what they have in memory is gone when they are restarted."""


class KeyringRow(Struct, frozen=True, kw_only=True):
    """How the keyring stands."""

    root: RootKind
    locked: str
    """Why it is not open; empty: it is."""
    attestation: str
    """By whose word a server is what it says."""
    swappable: str = ""
    """Why the memory of who keeps the keys may be written to a swap device; empty: it is locked."""
    place: str = ""
    """Of a root key in a TPM: the name under which it lies there; empty: the node's own."""
    keyspaces: int = 0
    purges: int = 0
    size: int = 0
    """Of the file, in bytes."""
    rotated: int = 0
    """When the root key was changed last by a person, in ns."""
    generations: int = 0
    """Of seeds."""


class KeysLocked(Failure):
    """The keyring needs a passphrase, which nobody has given since the server started; or it is lost."""

    reason: str

    @property
    def message(self) -> str:
        return (
            f"the node's keyring is not open ({self.reason}): see `atoll keys show`, and `atoll keys unlock`"
        )


class KeyringUnwritable(Failure):
    """The disk did not take a new keyring."""

    reason: str

    @property
    def message(self) -> str:
        return (
            f"the keyring could not be replaced ({self.reason}): it is as it was, or as it was to be; "
            "make room on its disk, and repeat it"
        )


class PurgesSpent(Failure):
    """A server has made all the purges in its keyspace that it may."""

    limit: int

    @property
    def message(self) -> str:
        return (
            f"the servers of this keyspace have made the {self.limit} purges that they may: a person can go on "
            "with `atoll purge`, or raise `purges_by_servers` in the configuration of [server.keys]"
        )


class NotReleased(Failure):
    """Whoever asks is not what the image's policy says."""

    server: str
    wanted: str
    found: str

    @property
    def message(self) -> str:
        return (
            f"no key for {self.server}: the policy wants {self.wanted}, and it is {self.found}; "
            "see `atoll protection show` and the policy of [server.keys] in the image"
        )


class Keys(Interface):
    errors = (KeysLocked, KeyringUnwritable, NotReleased, PurgesSpent)

    @stream("use", position=int)
    def hold(self, after: int = 0) -> Told:
        """To be kept open for as long as a process has keys: it tells of each purge, which `let_go` answers. `after`:
        what the caller knows of already; 0: of none. Raises `NotReleased`, `KeysLocked`."""

    @call("use", idempotent=True)
    def release(self, labels: list[bytes]) -> list[bytes | None]:
        """The data keys of so many labels, in their order; empty for a subject that was purged, None for a generation that
        this keyring has not. Raises `NotReleased` where
        the channel holds nothing (see `hold`)."""

    @call("use", idempotent=True)
    def let_go(self, position: int) -> None:
        """The caller's process has no key any more of whom the purge of that number was about."""

    @call("purge", idempotent=True)
    def purge(self, subject: str, keyspace: str = "") -> Purge:
        """Destroys the data key of a subject: in the keyspace of the capability, or by the unbadged one in all, or in
        the one of that name. When it returns, that cannot be undone by anything; and each server that might have had
        the key has let go of it, or is named."""

    @call("admin", idempotent=True)
    def rotate(self, passphrase: str = "", seeds: bool = False) -> KeyringRow:
        """Seals the keyring under a new root key. `passphrase`: the new one, where the root key is made of one. `seeds`: and
        begins a new generation, by whose keys is sealed from now on; what is sealed by older ones can be read as before."""

    @call("admin", idempotent=True)
    def unlock(self, passphrase: str) -> KeyringRow:
        """Opens a keyring whose root key is made of a passphrase; the first one that is given makes it. Raises
        `BadRequest` for a wrong one."""

    @call("observe", idempotent=True)
    def keyring(self) -> KeyringRow:
        """How it stands."""
