"""A sealed value as the store has it.

    c1 01 | generation of the key | tag of the subject | write id | nonce | ciphertext and its mark

No MessagePack begins with c1, so a sealed value is never taken for a plain one. What binds it to its place, as associated
data, is not in it: the keyspace's badge and the key. It opens at its own key only, and there for ever: who writes
it again at that key, as a roll-back does, writes the same bytes.
"""

import struct
from typing import TYPE_CHECKING

from atoll.ipc import chance
from atoll.ipc.system.keys import LABEL

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BEGIN = b"\xc1\x01"
WRITE = 16
"""Bytes of a write id: which of all writes this was."""
NONCE = 12
_place = struct.Struct(">QI").pack
_LABEL = len(BEGIN)
_WRITE = _LABEL + LABEL
_NONCE = _WRITE + WRITE
_SEALED = _NONCE + NONCE


def is_sealed(value: bytes) -> bool:
    """Whether a value of the store is an envelope."""
    return value.startswith(BEGIN)


def seal(cipher: "AESGCM", label: bytes, badge: int, key: bytes, plain: bytes) -> bytes:
    """An envelope for one key of a keyspace. RuntimeError in a simulation (`chance.secret`)."""
    fresh = chance.secret(WRITE + NONCE)
    bound = _place(badge, len(key)) + key + label + fresh[:WRITE]
    return BEGIN + label + fresh + cipher.encrypt(fresh[WRITE:], plain, bound)


def label_in(value: bytes) -> bytes | None:
    """By which key a value is sealed; None for what is not sealed."""
    return value[_LABEL:_WRITE] if value.startswith(BEGIN) and len(value) > _SEALED else None


def open_(cipher: "AESGCM", value: bytes, badge: int, key: bytes) -> bytes:
    """What was sealed. Precondition: `label_in` gave a label. Raises `cryptography.exceptions.InvalidTag` where it
    was not, by this cipher, for this place."""
    bound = _place(badge, len(key)) + key + value[_LABEL:_NONCE]
    return cipher.decrypt(value[_NONCE:_SEALED], value[_SEALED:], bound)
