"""The floors of durability: what the disk asks for, with no store around it."""

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..frame import Block, Contestant
from ..placement import Placement

PAGE = 4096
FILE = 64 << 20
SPREAD = 4 << 20
"""LMDB reuses the pages it freed lately, so a small store's commits scatter over no more than this."""
COMMIT = (10, 1)
"""Pages that LMDB writes and syncs for one transaction of three rows in trees of this size: data, meta."""


@contextmanager
def _written(path: Path) -> Iterator[int]:
    """A file whose blocks were all written beforehand, so that no sync takes metadata along."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(FILE >> 20):
            os.write(descriptor, bytes(1 << 20))
        os.fsync(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)
        path.unlink()


def _contestant(path: Path, name: str, syncs: Sequence[int], size: int, scattered: bool) -> Contestant:
    """For each of `syncs` an operation writes so many pages within the first `size` bytes, then fdatasync."""

    @contextmanager
    def open_(placement: Placement) -> Iterator[Block]:
        with _written(path) as descriptor:
            page, chance, pages = os.urandom(PAGE), random.Random(5), size // PAGE
            place = 0

            def block(n: int) -> float:
                nonlocal place
                start = time.perf_counter()
                for _ in range(n):
                    for count in syncs:
                        for _ in range(count):
                            place = chance.randrange(pages) if scattered else (place + 1) % pages
                            os.pwrite(descriptor, page, place * PAGE)
                        os.fdatasync(descriptor)
                return time.perf_counter() - start

            yield block

    return Contestant(name, open_)


def contestant(scratch: Path, name: str) -> Contestant:
    """pwrite of 4 KiB, one after the other, each with fdatasync."""
    return _contestant(scratch / "appended", name, (1,), FILE, scattered=False)


def commit_writes(scratch: Path, name: str) -> Contestant:
    """The writes and syncs of one LMDB commit with nothing else: how much of it is the disk."""
    return _contestant(scratch / "scattered", name, COMMIT, SPREAD, scattered=True)
