"""User ids of servers, on disk before anybody has one: files have owners, and nobody else may come to be one."""

import errno
import os
import resource
from pathlib import Path

import pytest

from atoll.microkernel.image import Uids as Range
from atoll.microkernel.uids import Uids

RANGE = Range(first=700_000, last=700_009)


def opened(path: Path) -> Uids:
    return Uids(path, RANGE, True)


def test_a_user_id_that_could_not_be_written_down_is_written_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next boot gives it to another server."""
    uids = opened(tmp_path / "uids")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            uids.of("mine")
    own = uids.of("mine")
    assert own is not None
    assert opened(tmp_path / "uids").owner(own) == "mine"


def test_what_a_full_disk_takes_in_part_takes_no_place(tmp_path: Path) -> None:
    uids = opened(tmp_path / "uids")
    first = uids.of("first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            uids.of("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert opened(tmp_path / "uids").of("first") == first


def test_a_user_id_is_nobodys_before_the_folder_has_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would put the one of before back."""
    steps: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def renamed(fresh: Path, path: Path) -> None:
        steps.append("renamed")
        rename(fresh, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    opened(tmp_path / "uids").of("mine")
    assert steps == [str(tmp_path / "uids.new"), "renamed", str(tmp_path)]
