"""User ids of servers, on disk before anybody has one: files have owners, and nobody else may come to be one."""

import errno
import os
import resource
from pathlib import Path

import pytest

from atoll.microkernel.image import Uids as Range
from atoll.microkernel.protection.process import SHARED_UID
from atoll.microkernel.uids import Uids, give

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


def test_nobody_else_may_write_on_the_way_to_a_servers_folder(tmp_path: Path) -> None:
    """Whoever may could put a link to what is not the server's in its place, and root would give it that."""
    before = os.umask(0)
    try:
        give(tmp_path / "data" / "storage" / "blobs", None)
    finally:
        os.umask(before)
    folders = [tmp_path / "data", tmp_path / "data" / "storage", tmp_path / "data" / "storage" / "blobs"]
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o755, 0o755, 0o700]


def test_no_server_is_given_the_user_that_others_share(tmp_path: Path) -> None:
    """Servers that go without a user of their own run as that one, and packages that nobody has looked at yet."""
    uids = Uids(tmp_path / "uids", Range(first=SHARED_UID - 1, last=SHARED_UID + 1), True)
    assert [uids.of("first"), uids.of("second")] == [SHARED_UID - 1, SHARED_UID + 1]
    with pytest.raises(OSError, match="all taken"):
        uids.of("third")
