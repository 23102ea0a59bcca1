"""A disk that is full: what is said of it, wherever something is written that a node needs."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def needing_room(folder: Path, refusal: Callable[[str], Exception], what_then: str) -> Iterator[None]:
    """Raises `refusal` of a sentence, whose end says what was kept and what to do, where the disk of a folder is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise refusal(f"the disk that holds {folder} is full: {what_then}") from None
