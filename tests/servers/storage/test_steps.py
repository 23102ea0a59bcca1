"""kill -9 before each system call of puts and of a collection; and, by the same trace, what a power cut leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

from atoll.servers.storage.blobs import Blobs, prove_file
from atoll.servers.storage.interface import BlobRef
from tests.servers.storage.dying import CONTENTS, KEPT

HOUSE = Path(__file__).parents[3]
ADDRESS = {name: BlobRef.of(content).hash for name, content in CONTENTS.items()}


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of the children, in the order of the step at which they died; the last one did not."""
    folder = tmp_path_factory.mktemp("died")
    command = [sys.executable, "-m", "tests.servers.storage.dying", str(folder)]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    assert len(found) > 50
    return found


def told(folder: Path) -> list[str]:
    return folder.with_suffix(".told").read_text().splitlines()


def content(blobs: Blobs, name: str) -> bytes | None:
    """What is there under the name's address, proved; None if nothing is."""
    small = blobs.small(ADDRESS[name])
    if small is not None or not blobs.has(ADDRESS[name]):
        return small
    prove_file(blobs.path(ADDRESS[name]), ADDRESS[name])
    return CONTENTS[name]


def test_whatever_the_step_what_was_acknowledged_is_there(died: list[Path]) -> None:
    for folder in died:
        acknowledged = {line.split(" ", 1)[1] for line in told(folder) if line.startswith("acknowledged ")}
        may_be_collected = set() if "everything" not in acknowledged else set(CONTENTS) - set(KEPT)
        blobs = Blobs(folder)
        blobs.open()
        for name in CONTENTS:
            found = content(blobs, name)
            assert found in (None, CONTENTS[name]), f"{folder.name}: {name} is there and is not whole"
            if name in acknowledged and name not in may_be_collected:
                assert found is not None, f"{folder.name}: {name} was acknowledged and is gone"
        assert blobs.broken() == []
        (workplace,) = (folder / "tmp").iterdir()
        assert list(workplace.iterdir()) == [], f"{folder.name}: the next start left what was half written"
        assert list(blobs.strangers()) == []
        blobs.close()


def test_the_last_child_collected_what_nothing_refers_to(died: list[Path]) -> None:
    blobs = Blobs(died[-1])
    blobs.open()
    assert sorted(name for name in CONTENTS if content(blobs, name)) == sorted(KEPT)
    assert len(blobs.packs) == 1
    blobs.close()


class Disk:
    """What is sure to be on the disk at a power cut: contents that were fsynced, under names whose folder was.

    A name that was removed may still be there, or not; it counts as gone at once.
    """

    def __init__(self) -> None:
        self.synced: set[str] = set()
        """Names whose content is durable."""
        self.named: dict[str, bool] = {}
        """Final names, and whether the folder has been fsynced since they appeared."""

    def step(self, call: str, path: str, rest: list[str]) -> None:
        match call:
            case "write":
                self.synced.discard(path)
            case "fsync" if path in self.folders:
                self.named |= {name: True for name in self.named if str(Path(name).parent) == path}
            case "fsync":
                self.synced.add(path)
            case "link" | "replace":
                assert path in self.synced, f"{rest[0]} got a name before its content was durable"
                self.named[rest[0]] = self.named.get(rest[0], False) and call == "replace"
            case "unlink":
                self.named.pop(path, None)

    @property
    def folders(self) -> set[str]:
        return {str(Path(name).parent) for name in self.named}

    def unsure(self) -> set[str]:
        return {name for name, durable in self.named.items() if not durable}


def test_nothing_is_acknowledged_or_replaced_before_it_would_survive_a_power_cut(died: list[Path]) -> None:
    disk = Disk()
    acknowledged = removed = 0
    for line in told(died[-1]):
        call, path, *rest = line.split(" ")
        if call == "acknowledged":
            assert not disk.unsure(), f"{line}, and a power cut could still lose it"
            acknowledged += 1
            continue
        if call == "unlink" and "/packs/" in path:
            assert not disk.unsure(), f"{path} was removed while what replaces it could still be lost"
            removed += 1
        disk.step(call, path, rest)
    assert acknowledged == len(CONTENTS) + 2
    assert removed >= 3, "the collection removed packs"
