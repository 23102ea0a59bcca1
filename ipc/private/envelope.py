"""A sealed value as the store has it.

    c1 01 | tag of the subject | write id | nonce | ciphertext and its mark

No MessagePack begins with c1, so a sealed value is never taken for a plain one. What binds it to its place, as associated
data, is not in it: the keyspace's badge and the key. It opens at its own key only, and there for ever: who writes
it again at that key, as a roll-back does, writes the same bytes.
"""

import struct
from typing import TYPE_CHECKING, NamedTuple

from atoll.ipc import chance
from atoll.ipc.system.keys import TAG

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BEGIN = b"\xc1\x01"
WRITE = 16
"""Bytes of a write id: which of all writes this was."""
NONCE = 12
_place = struct.Struct(">QI")
_HEAD = len(BEGIN) + TAG + WRITE + NONCE


class Envelope(NamedTuple):
    tag: bytes
    write: bytes
    nonce: bytes
    sealed: bytes


def is_sealed(value: bytes) -> bool:
    """Whether a value of the store is an envelope."""
    return value.startswith(BEGIN)


def seal(cipher: "AESGCM", tag: bytes, badge: int, key: bytes, plain: bytes) -> bytes:
    """An envelope for one key of a keyspace. RuntimeError in a simulation (`chance.secret`)."""
    fresh = chance.secret(WRITE + NONCE)
    write, nonce = fresh[:WRITE], fresh[WRITE:]
    return b"".join((BEGIN, tag, fresh, cipher.encrypt(nonce, plain, _bound(badge, key, tag, write))))


def parse(value: bytes) -> Envelope | None:
    """The parts of an envelope; None for what is none."""
    if len(value) < _HEAD or not value.startswith(BEGIN):
        return None
    tag, write = len(BEGIN) + TAG, len(BEGIN) + TAG + WRITE
    return Envelope(value[len(BEGIN) : tag], value[tag:write], value[write:_HEAD], value[_HEAD:])


def open_(cipher: "AESGCM", envelope: Envelope, badge: int, key: bytes) -> bytes:
    """What was sealed. Raises `cryptography.exceptions.InvalidTag` where it was not, by this key, for this place."""
    bound = _bound(badge, key, envelope.tag, envelope.write)
    return cipher.decrypt(envelope.nonce, envelope.sealed, bound)


def _bound(badge: int, key: bytes, tag: bytes, write: bytes) -> bytes:
    return b"".join((_place.pack(badge, len(key)), key, tag, write))
