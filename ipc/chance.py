"""Chance, for a process of the node: the host's, or in a simulation what its seed gives."""

import os
from collections.abc import Callable

token: Callable[[int], bytes] = os.urandom
"""So many bytes that nobody can guess."""


def follow(source: Callable[[int], bytes]) -> None:
    """Take chance from there, in this whole process, from now on."""
    global token
    token = source
