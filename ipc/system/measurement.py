"""What a process is, for whoever has to know before it trusts it with something."""

from msgspec import Struct


class Measurement(Struct, frozen=True, kw_only=True):
    """What a server's process is, by the kernel that started it."""

    server: str
    version: str
    """Content hash of the package that it runs."""
    level: str
    """The protection level that it has."""
    wanted: str
    """The one that the image wants; of a server that a person loaded, the one it was loaded with."""
    mechanisms: list[str]
    """In force."""
    image: str
    """Hash of the server's table in the image; empty: the image does not name it."""
