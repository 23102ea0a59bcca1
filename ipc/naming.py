"""Names become numbers by a hash, so that no registry of numbers is needed and a renamed thing is another
thing."""

from hashlib import blake2b


def number_of(name: str) -> int:
    """The 32-bit number of a method or a failure: the first four bytes, little-endian, of its name's
    BLAKE2b."""
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little")
