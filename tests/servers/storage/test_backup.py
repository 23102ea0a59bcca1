"""Blobs copied beside a server that puts, collects and puts packs together; killed at each step; from damaged files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from atoll.servers.storage import backup
from atoll.servers.storage.backup import Copied, copy, copy_all, damages
from atoll.servers.storage.blobs import Blobs
from atoll.servers.storage.interface import BlobRef
from tests.kit.dying import survives


def filled(folder: Path, names: Iterator[str] | list[str]) -> dict[bytes, bytes]:
    """Puts blobs, large ones and small, a pack each; gives what is there."""
    found = {}
    blobs = Blobs(folder)
    blobs.open()
    for name in names:
        content = name.encode() * (70_000 if name.startswith("large") else 3)
        ref = BlobRef.of(content)
        found[ref.hash] = content
        if len(content) > 65536:
            writer = blobs.writer()
            writer.write(content)
            writer.seal()
            blobs.install(writer.temporary, blobs.path(ref.hash))
        else:
            held = [(ref.hash, content)]
            blobs.admit(blobs.write_pack(blobs.temporary(), blobs.next_pack(), held))
    blobs.close()
    return found


def contents(folder: Path, wanted: dict[bytes, bytes]) -> set[bytes]:
    """Which of these are there, and whole."""
    assert list(damages(folder.parent.parent)) == []
    blobs = Blobs(folder)
    blobs.open()
    there = {address for address in wanted if blobs.has(address)}
    for address in there:
        small = blobs.small(address)
        assert small is None or small == wanted[address]
    assert list(blobs.strangers()) == []
    blobs.close()
    return there


def test_killed_at_every_step(tmp_path: Path) -> None:
    data, archive = tmp_path / "data", tmp_path / "archive"
    (data / "storage").mkdir(parents=True)
    wanted = filled(data / "storage" / "blobs", ["large 1", "a", "b", "large 2", "c"])
    killed, most = 0, 0
    while not survives(killed, partial(copy_all, data, archive)):
        killed += 1
        if (archive / "storage" / "blobs" / "packs").is_dir():
            found = len(contents(archive / "storage" / "blobs", wanted))
            assert found >= most
            most = found
    assert killed > 10
    assert contents(archive / "storage" / "blobs", wanted) == set(wanted)
    assert copy_all(data, archive).blobs == 0


def test_packs_that_are_put_together_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "data" / "storage" / "blobs"
    source.parent.mkdir(parents=True)
    wanted = filled(source, ["large 1", "a", "b", "c"])
    listed = backup._listed
    rounds = []

    def disturbed(folder: Path) -> Iterator[str]:
        """What was listed, and then all packs are put together into a new one."""
        names = list(listed(folder))
        if not rounds:
            blobs = Blobs(source)
            blobs.open()
            old = list(blobs.packs)
            held = [(each, small) for each in wanted if (small := blobs.small(each)) is not None]
            blobs.admit(blobs.write_pack(blobs.temporary(), blobs.next_pack(), held))
            for number in old:
                blobs.drop_pack(number)
            blobs.close()
        rounds.append(names)
        return iter(names)

    monkeypatch.setattr(backup, "_listed", disturbed)
    copied = Copied()
    copy(source, tmp_path / "archive" / "storage" / "blobs", copied)
    monkeypatch.setattr(backup, "_listed", listed)
    assert len(rounds) > 1 and copied.blobs == 4
    assert contents(tmp_path / "archive" / "storage" / "blobs", wanted) == set(wanted)


def spoil(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("place", ["file", "pack"])
def test_what_is_damaged_is_left_out_and_named(tmp_path: Path, place: str) -> None:
    source = tmp_path / "data" / "storage" / "blobs"
    source.parent.mkdir(parents=True)
    wanted = filled(source, ["large 1", "a"])
    if place == "file":
        (path,) = (source / "blobs").glob("*/*")
        spoil(path, 70_000)
        sentence = f"{path}: at byte 65536 of its content"
    else:
        (path,) = (source / "packs").iterdir()
        spoil(path, path.stat().st_size - 1)
        sentence = f"{path}: at byte {path.stat().st_size - 3}"
    copied = copy_all(tmp_path / "data", tmp_path / "archive")
    assert copied.damaged == [sentence]
    assert copied.blobs == 1
    assert len(contents(tmp_path / "archive" / "storage" / "blobs", wanted)) == 1
    (found,) = damages(tmp_path / "data")
    assert found.startswith(sentence)


def test_other_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "state").mkdir(parents=True)
    (tmp_path / "data" / "notes" / "files").mkdir(parents=True)
    (tmp_path / "data" / "notes" / "empty").mkdir()
    (tmp_path / "data" / "notes" / "files" / "one").touch()
    assert copy_all(tmp_path / "data", tmp_path / "archive").left_out == ["notes/files"]
