"""Why a backup, or a restore, came to nothing."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..engine import Full

REFUSED, NO_ROOM, DAMAGED = 6, 7, 10
"""Exit codes, as docs/manual.md has them."""


class Refused(Exception):
    """What was asked for is not to be had; nothing was done. The message is one sentence with the remedy."""

    code = REFUSED


class NoRoom(Exception):
    """The disk is full. What was there is as it was."""

    code = NO_ROOM


class Damaged(Exception):
    """The backup is not as it was written. The message names file and offset."""

    code = DAMAGED


@contextmanager
def needing_room(folder: Path, consolation: str) -> Iterator[None]:
    """Raises `NoRoom` where the disk that holds a folder is full."""
    try:
        yield
    except (OSError, Full) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(
            f"the disk that holds {folder} is full: {consolation}; free room there, and run it again"
        ) from None
