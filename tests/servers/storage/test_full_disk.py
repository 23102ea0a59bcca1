"""A real full file system: one sentence, nothing half-written, and reading, collecting and restarting go on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.servers.storage.interface import BlobRef, DiskFull, Storage
from atoll.servers.storage.server import Server, Settings
from tests.kit.disk import small_disk

CONFIG = Settings(grace=3600.0, collect_every=600.0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB and few inodes."""
    with small_disk(tmp_path / "disk", "size=8m,nr_inodes=420") as folder:
        yield folder


def fill(storage: Storage, size: int) -> tuple[list[BlobRef], DiskFull]:
    """Put blobs of a size until one is refused."""
    refs: list[BlobRef] = []
    while True:
        content = os.urandom(size)
        try:
            refs.append(storage.put.now(content[at : at + 50_000] for at in range(0, size, 50_000)))
        except DiskFull as full:
            return refs, full


def half_written(folder: Path) -> list[Path]:
    return list((folder / "tmp").glob("*/*"))


@pytest.mark.parametrize("size", [700_000, 60_000, 10], ids=["by bytes", "packs by bytes", "by names"])
def test_a_full_disk(disk: Path, serve: Callable[..., Any], size: int) -> None:
    served = serve(Server, folder=disk, config=CONFIG)
    storage: Storage = served.client()
    refs, full = fill(storage, size)
    assert str(full).startswith("the disk is full after ")
    assert str(full).endswith(" bytes of this put: nothing of it was kept; free space or collect")
    assert half_written(disk) == []
    free = os.statvfs(disk)
    for _ in range(3):
        with pytest.raises(DiskFull):
            storage.put_many.now([os.urandom(60_000) for _ in range(200)])
    after = os.statvfs(disk)
    assert (after.f_bfree, after.f_ffree) == (free.f_bfree, free.f_ffree), "a refused put takes nothing"

    kept = refs[: len(refs) // 2]
    storage.refer.now([ref.hash for ref in kept], "o", "n")
    served.kill()
    served.server._blobs.close()  # as the end of its process does
    again = serve(Server, folder=disk, config=CONFIG)
    storage = again.client()
    assert (storage.verify.now().blobs, storage.verify.now().damaged) == (len(refs), [])
    again.advance(CONFIG.grace + 1)  # the collections by the clock run on the full disk, too
    assert storage.collect.now().blobs == 0, "they have removed what nothing refers to"
    assert storage.verify.now().blobs == len(kept)
    assert storage.verify.now().missing == []
    assert fill(storage, size)[0], "there is room again"
    for ref in kept:
        assert sum(len(piece.data) for piece in storage.get.now(ref.hash)) == ref.size
