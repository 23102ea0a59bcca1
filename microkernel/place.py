"""Where a node is and what it is called."""

import hashlib
from pathlib import Path

from msgspec import Struct


class Place(Struct, frozen=True, kw_only=True):
    """Where a node is and what it is called."""

    name: str
    folder: Path
    image_path: str
    degrade: bool

    @property
    def marker(self) -> str:
        """Stands on the command line of every process of the node."""
        return f"atoll-node={self.folder}"

    @property
    def group(self) -> str:
        """The node's name for control groups: nodes of one name in two folders must not share any."""
        return f"{self.name}-{hashlib.blake2b(str(self.folder).encode(), digest_size=4).hexdigest()}"

    @property
    def socket(self) -> Path:
        return self.folder / "attach.sock"
