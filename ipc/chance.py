"""Chance, for a process of the node: the host's, or in a simulation what its seed gives."""

import os
from collections.abc import Callable

token: Callable[[int], bytes] = os.urandom
"""So many bytes that nobody can guess."""


def secret(size: int) -> bytes:
    """So many bytes for a key or a nonce, of the host's chance. RuntimeError in a process that a seed decides: whoever knows
    the seed would know them, and with another's live keys a nonce would come twice."""
    if token is not os.urandom:
        raise RuntimeError("nothing is sealed where chance comes from a seed: give the server test keys")
    return os.urandom(size)


def follow(source: Callable[[int], bytes]) -> None:
    """Take chance from there, in this whole process, from now on."""
    global token
    token = source
