"""The keyring's file: killed at each step of what changes it, lost, mixed up, under a passphrase."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.ipc import chance
from atoll.ipc.errors import BadRequest
from atoll.ipc.system.keys import KeysLocked
from atoll.servers.keys import files
from atoll.servers.keys.keyring import FILE, Keyring, Unreadable
from atoll.servers.keys.root import FileRoot, PassphraseRoot
from atoll.servers.shell.keyring import written
from tests.kit.dying import survives

ANN, BOB = b"a" * 16, b"b" * 16
BADGE = 7
OLD, NEW = b"\0", b"\1"
"""Generations."""


def ring(folder: Path, known: bytes | None = None) -> Keyring:
    found = Keyring(folder, FileRoot(folder))
    found.open(known, 1)
    return found


def passphrase(folder: Path, word: str) -> Keyring:
    root = PassphraseRoot(folder)
    found = Keyring(folder, root)
    fits = [tried for tried in root.offer(word) if found.try_key(tried.key)]
    assert fits, "the passphrase is wrong"
    root.take(fits[0])
    found.open(None, 1)
    return found


def test_keys_come_again_from_the_file(tmp_path: Path) -> None:
    first = ring(tmp_path)
    keys = first.key(BADGE, OLD + ANN), first.key(BADGE, OLD + BOB), first.key(BADGE + 1, OLD + ANN)
    assert len({*keys}) == 3 and all(key is not None and len(key) == 32 for key in keys)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    second = ring(tmp_path, first.contents.id)
    assert (
        second.key(BADGE, OLD + ANN),
        second.key(BADGE, OLD + BOB),
        second.key(BADGE + 1, OLD + ANN),
    ) == keys
    assert second.index(BADGE) == first.index(BADGE) != first.index(BADGE + 1)
    (made,) = second.purge([(BADGE, ANN)], 5)
    assert (second.key(BADGE, OLD + ANN), second.key(BADGE, OLD + BOB), second.key(BADGE + 1, OLD + ANN)) == (
        b"",
        *keys[1:],
    )
    assert second.purge([(BADGE, ANN)], 6) == []
    third = ring(tmp_path)
    assert (third.key(BADGE, OLD + ANN), third.key(BADGE, OLD + BOB)) == (b"", keys[1])
    assert third.made(BADGE, made.number - 1) == [made] and third.made(BADGE, made.number) == []


def test_a_copy_of_a_keyring_that_is_replaced_meanwhile_opens(tmp_path: Path) -> None:
    """Folders apart, as a node has them; another process rotates for as long as copies are made."""
    kept = tmp_path / "kept"
    for name in ("keyring", "root"):
        (kept / name).mkdir(parents=True)
    first = Keyring(kept / "keyring", FileRoot(kept / "root"))
    first.open(None, 1)
    parent, child = os.getpid(), os.fork()
    if not child:
        while os.getppid() == parent:
            first.rotate(2)
        os._exit(0)
    try:
        for number in range(20):
            copy = tmp_path / f"copy {number}"
            assert written(kept, copy) == ["keyring/keyring", "root/root.key"]
            again = Keyring(copy / "keyring", FileRoot(copy / "root"))
            again.open(first.contents.id, 3)
            assert again.key(BADGE, OLD + ANN) == first.key(BADGE, OLD + ANN)
            assert (copy / "root" / "root.key").stat().st_mode & 0o777 == 0o600
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with pytest.raises(BadRequest, match="expected a new folder"):
        written(kept, tmp_path / "copy 1")


def test_a_place_in_a_tpm_is_a_keyrings_own_and_stays(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = PassphraseRoot(tmp_path / "one", "tpm"), PassphraseRoot(tmp_path / "other", "tpm")
    place = one.place()
    assert len(place) == 32 and place != other.place()
    passphrase(tmp_path / "one", "a secret")
    root = PassphraseRoot(tmp_path / "one", "tpm")
    assert root.place() == place
    root.take(root.offer("a secret")[0])
    root.change("another")
    root.begin()
    assert root.place() == place
    root.end()
    assert root.place() == place
    (tmp_path / "before").mkdir()
    passphrase(tmp_path / "before", "a secret")
    assert PassphraseRoot(tmp_path / "before", "tpm").place() == "", "its secret lies under the node's name"


def test_new_seeds_are_for_what_comes(tmp_path: Path) -> None:
    first = ring(tmp_path)
    before = first.key(BADGE, OLD + ANN)
    first.purge([(BADGE, BOB)], 5)
    assert first.generation == 0 and first.key(BADGE, NEW + ANN) is None
    first.rotate(6, seeds=True)
    for found in (first, ring(tmp_path)):
        assert found.generation == 1 and found.key(BADGE, OLD + ANN) == before
        assert found.key(BADGE, NEW + ANN) not in (b"", before)
        assert found.key(BADGE, OLD + BOB) == found.key(BADGE, NEW + BOB) == b""
    first.purge([(BADGE, ANN)], 7)
    assert ring(tmp_path).key(BADGE, OLD + ANN) == ring(tmp_path).key(BADGE, NEW + ANN) == b""


def purge(folder: Path) -> None:
    ring(folder).purge([(BADGE, ANN)], 5)
    (folder / "acknowledged").touch()


def rotate(folder: Path) -> None:
    ring(folder).rotate(9)
    (folder / "acknowledged").touch()


@pytest.mark.parametrize("change", [purge, rotate], ids=lambda change: change.__name__)
def test_a_kill_at_any_step_leaves_it_done_or_not_begun(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    bob, ann = ring(begun).key(BADGE, OLD + BOB), ring(begun).key(BADGE, OLD + ANN)
    steps, outcomes = 0, list[bool]()
    while True:
        folder = tmp_path / str(steps)
        shutil.copytree(begun, folder)
        whole = survives(steps, lambda folder=folder: change(folder))  # type: ignore[misc]
        after = ring(folder)
        done = after.contents.rotated == 9 if change is rotate else after.key(BADGE, OLD + ANN) == b""
        assert after.key(BADGE, OLD + BOB) == bob
        assert after.key(BADGE, OLD + ANN) == (b"" if done and change is purge else ann)
        assert done or not (folder / "acknowledged").exists()
        assert len(after.root.keys()) == 1 and after.root.settled(), "one root key is left"
        old = tmp_path / f"old {steps}"
        shutil.copytree(folder, old)
        shutil.copy(begun / FILE, old / FILE)
        if done:
            with pytest.raises(Unreadable):  # the ring that was, with the root key that is
                ring(old)
        outcomes.append(done)
        if whole:
            break
        steps += 1
    assert steps > 8 and outcomes == sorted(outcomes) and outcomes[-1]


def test_a_kill_while_the_first_is_made_is_no_loss(tmp_path: Path) -> None:
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        folder.mkdir()
        whole = survives(steps, lambda folder=folder: ring(folder))  # type: ignore[misc]
        assert len(ring(folder).key(BADGE, OLD + ANN) or b"") == 32
        if whole:
            break
        steps += 1
    assert steps > 5


def test_a_full_disk_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ring(tmp_path)
    bob = found.key(BADGE, OLD + BOB)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", full)
        with pytest.raises(OSError, match="No space"):
            found.purge([(BADGE, ANN)], 5)
    assert (len(found.key(BADGE, OLD + ANN) or b""), found.key(BADGE, OLD + BOB)) == (32, bob)
    assert found.purge([(BADGE, ANN)], 6)
    assert ring(tmp_path).key(BADGE, OLD + ANN) == b""


def test_what_is_lost_or_mixed_up_is_said(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        ring(folder)
    with pytest.raises(Unreadable, match="another node's than the rows of this store"):
        ring(one, ring(two).contents.id)
    shutil.copy(one / FILE, two / FILE)
    with pytest.raises(Unreadable, match="its root key does not open it"):
        ring(two)
    (one / "root.key").rename(one / "elsewhere")
    with pytest.raises(Unreadable, match="no root key to open it with"):
        ring(one)
    (one / "elsewhere").rename(one / "root.key")
    (one / FILE).unlink()
    with pytest.raises(Unreadable, match="there is none, and there was one"):
        ring(one)
    with pytest.raises(Unreadable, match="there is none, and there was one"):
        ring(tmp_path, b"8 bytes!")
    (tmp_path / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(Unreadable, match="no keyring of this version"):
        ring(tmp_path)


def test_a_passphrase_opens_it_and_can_be_changed(tmp_path: Path) -> None:
    first = passphrase(tmp_path, "open sesame")
    ann = first.key(BADGE, OLD + ANN)
    locked = Keyring(tmp_path, PassphraseRoot(tmp_path))
    with pytest.raises(KeysLocked, match="passphrase"):
        locked.open(None, 1)
    root = PassphraseRoot(tmp_path)
    assert not any(Keyring(tmp_path, root).try_key(tried.key) for tried in root.offer("close sesame"))
    with pytest.raises(BadRequest, match="an empty one"):
        root.offer("")
    second = passphrase(tmp_path, "open sesame")
    second.purge([(BADGE, BOB)], 5)
    assert isinstance(second.root, PassphraseRoot)
    second.root.change("another word")
    second.rotate(6)
    third = passphrase(tmp_path, "another word")
    assert (third.key(BADGE, OLD + ANN), third.key(BADGE, OLD + BOB)) == (ann, b"")
    assert not any(third.try_key(tried.key) for tried in PassphraseRoot(tmp_path).offer("open sesame"))


def change_passphrase(folder: Path) -> None:
    found = passphrase(folder, "old")
    assert isinstance(found.root, PassphraseRoot)
    found.root.change("new")
    found.rotate(9)


def test_a_change_of_passphrase_that_is_cut_short(tmp_path: Path) -> None:
    """One of the two opens it, whichever step it came to."""
    begun = tmp_path / "begun"
    begun.mkdir()
    ann = passphrase(begun, "old").key(BADGE, OLD + ANN)
    for step in (4, 9):
        folder = tmp_path / str(step)
        shutil.copytree(begun, folder)
        survives(step, lambda folder=folder: change_passphrase(folder))  # type: ignore[misc]
        root = PassphraseRoot(folder)
        words = [
            word
            for word in ("old", "new")
            if any(Keyring(folder, root).try_key(tried.key) for tried in root.offer(word))
        ]
        assert len(words) == 1
        assert passphrase(folder, words[0]).key(BADGE, OLD + ANN) == ann
        assert passphrase(folder, words[0]).key(BADGE, OLD + ANN) == ann


def test_a_change_of_passphrase_that_the_disk_refuses_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = passphrase(tmp_path, "old")
    assert isinstance(found.root, PassphraseRoot)
    real = files.replace

    def full(path: Path, content: bytes) -> None:
        if path.name == FILE:
            raise OSError(28, "No space left on device")
        real(path, content)

    found.root.change("new")
    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", full)
        with pytest.raises(OSError, match="No space"):
            found.rotate(5)
    found.purge([(BADGE, BOB)], 6)  # it is replaced once more, by what opened it before
    assert passphrase(tmp_path, "old").key(BADGE, OLD + BOB) == b""


def test_a_generation_that_is_not_there_is_not_a_purge(tmp_path: Path) -> None:
    assert ring(tmp_path).key(BADGE, NEW + ANN) is None


def test_nothing_is_sealed_where_chance_is_a_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chance, "token", bytes)
    with pytest.raises(RuntimeError, match="chance comes from a seed"):
        chance.secret(16)


def test_what_was_left_beside_a_secret_is_overwritten(tmp_path: Path) -> None:
    """By whoever was killed before it had its name: with the new root key it has the one of before."""
    path, old = tmp_path / "root.key", tmp_path / "what lies on the disk"
    files.replace(path, b"first")
    (tmp_path / "root.key.new").write_bytes(b"second, first")
    os.link(tmp_path / "root.key.new", old)
    files.replace(path, b"third")
    assert path.read_bytes() == b"third" and old.read_bytes() == bytes(len(b"second, first"))
    assert not (tmp_path / "root.key.new").exists()
