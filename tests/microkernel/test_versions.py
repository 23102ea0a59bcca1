"""Versions: a copy is what its hash says, is there whole or not at all, and does not follow later edits."""

import importlib
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atoll.ipc.errors import BadRequest, NotFound
from atoll.ipc.runtime import bytecode
from atoll.ipc.runtime.describe import Description
from atoll.microkernel import versions
from atoll.microkernel.versions import Versions, hash_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "counter"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "server.py").write_text("x = 1\n")
    (folder / "deep" / "table.py").write_text("y = 2\n")
    return folder


def test_a_version_is_a_copy_that_stays(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    version = versions.add(package)
    (package / "server.py").write_text("x = 2\n")
    assert (version.folder / "counter" / "server.py").read_text() == "x = 1\n"
    versions.verify(version)
    assert versions.add(package).hash != version.hash
    assert len(versions.all()) == 2


def test_the_same_content_is_one_version(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    first = versions.add(package)
    os.utime(package / "server.py", (1, 1))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "server.pyc").write_bytes(b"cache")
    (package / ".swp").touch()
    assert versions.add(package) == first
    assert sorted(path.name for path in versions.folder.iterdir()) == [first.hash]


@pytest.mark.parametrize("names", [("counter", "teller"), ("counter", "counter")])
def test_several_are_copied_at_once(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """Each is whole before any of them has its name."""
    both = threading.Barrier(2)

    def together(copy: Path) -> str:
        if copy.parent.name.startswith(".new-"):
            both.wait(60)
        return hash_of(copy)

    shutil.copytree(package, package.with_name("teller"))
    store = Versions(tmp_path / "versions")
    monkeypatch.setattr(versions, "hash_of", together)
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(store.add, [package.with_name(name) for name in names]))
    monkeypatch.undo()
    assert [version.package for version in made] == list(names)
    for version in made:
        store.verify(version)
        assert [path.name for path in version.folder.iterdir()] == [version.package]
    assert len(list(store.folder.iterdir())) == len(set(names))


@pytest.mark.parametrize("change", ["content", "name", "mode", "added", "moved"])
def test_every_change_that_matters_changes_the_hash(package: Path, change: str) -> None:
    before = hash_of(package)
    match change:
        case "content":
            (package / "deep" / "table.py").write_text("y = 3\n")
        case "name":
            (package / "deep" / "table.py").rename(package / "deep" / "cable.py")
        case "mode":
            (package / "server.py").chmod(0o755)
        case "added":
            (package / "more.py").touch()
        case _:
            package = package.rename(package.with_name("other"))
    assert hash_of(package) != before


def test_a_changed_copy_is_found(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    version = versions.add(package)
    copy = version.folder / "counter" / "server.py"
    copy.chmod(0o644)
    copy.write_text("x = 3\n")
    with pytest.raises(BadRequest, match="delete the folder and load the package again"):
        versions.verify(version)
    with pytest.raises(BadRequest, match=f"expected contents with the hash {version.hash}"):
        versions.add(package)


def test_links_and_packages_without_a_server_are_refused(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    (package / "link.py").symlink_to("/etc/passwd")
    with pytest.raises(BadRequest, match=r"link.py: expected a plain file or folder"):
        versions.add(package)
    (package / "link.py").unlink()
    (package / "server.py").unlink()
    with pytest.raises(BadRequest, match=r"expected a package with a server\.py, got none"):
        versions.add(package)
    with pytest.raises(NotFound, match="there is no package folder"):
        versions.add(tmp_path / "nowhere")


@pytest.mark.parametrize("where", ["file", "folder", "pipe"])
def test_what_becomes_a_link_as_it_is_copied_is_not_followed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whoever may load packages may not read what the kernel may."""
    secret = tmp_path / "secret" / "inner.py"
    secret.parent.mkdir()
    secret.write_text("what only root may read")
    inner = package / "part" / "inner.py"
    inner.parent.mkdir()
    inner.write_text("what was listed")
    listed = versions.contents

    def listed_and_changed(package: Path) -> list[versions.File]:
        found = listed(package)
        if where == "folder":
            shutil.rmtree(inner.parent)
            inner.parent.symlink_to(secret.parent)
        else:
            inner.unlink()
            inner.symlink_to(secret) if where == "file" else os.mkfifo(inner)
        return found

    monkeypatch.setattr(versions, "contents", listed_and_changed)
    with pytest.raises(BadRequest, match="a link or special file"):
        Versions(tmp_path / "versions").add(package)
    assert not [path for path in (tmp_path / "versions").rglob("*") if path.name == "inner.py"]


def test_a_name_that_is_no_text_is_refused(package: Path, tmp_path: Path) -> None:
    (package / os.fsdecode(b"odd\xff.py")).touch()
    with pytest.raises(BadRequest, match=r"names are UTF-8, got 'odd\\udcff\.py'"):
        Versions(tmp_path / "versions").add(package)


def test_a_beginning_of_the_hash_is_enough_unless_it_fits_two(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    first = versions.add(package)
    assert versions.get("counter", first.hash[:6]) == first
    (package / "server.py").write_text("x = 2\n")
    versions.add(package)
    with pytest.raises(BadRequest, match="expected more of the hash"):
        versions.get("counter", "")
    with pytest.raises(NotFound, match="there is no version of counter 'zz'"):
        versions.get("counter", "zz")


def described(version_hash: str, package: Path) -> Description:
    return Description(
        interfaces=(), needs={}, accepts_handover=False, hash=version_hash,
        bytecode=bytecode.packed(bytecode.compiled(package)),
    )  # fmt: skip


def test_what_describing_compiled_is_kept_for_the_version_it_was_of(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    version = versions.add(package)
    versions.keep(version, described("of another", package))
    assert bytecode.kept(version.folder) == {}
    versions.keep(version, described(version.hash, package))
    assert sorted(bytecode.kept(version.folder)) == ["__init__.py", "deep/table.py", "server.py"]
    versions.verify(version)
    assert versions.all() == [version]


def test_bytecode_that_was_written_in_part_is_none(package: Path, tmp_path: Path) -> None:
    version = Versions(tmp_path / "versions").add(package)
    whole = bytecode.packed(bytecode.compiled(package))
    for length in range(len(whole)):
        (version.folder / bytecode.FILE).write_bytes(whole[:length])
        assert bytecode.kept(version.folder) == {}


def test_modules_are_found_in_bytecode_and_name_their_own_files(package: Path, tmp_path: Path) -> None:
    (package / "deep" / "__init__.py").touch()
    (package / "broken.py").write_text("no python")
    (package / "server.py").write_text(
        "from .deep import table\nfrom . import late\nwhere = (lambda: 0).__code__\n"
    )
    code = bytecode.compiled(package)
    assert "broken.py" not in code
    (package / "late.py").write_text("x = 1\n")
    elsewhere = tmp_path / "elsewhere" / "kept_as_code"  # no other test imports one of that name
    elsewhere.parent.mkdir()
    package.rename(elsewhere)
    (elsewhere / "deep" / "table.py").unlink()
    finder = bytecode.Finder(str(elsewhere.parent), elsewhere.name, code)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(elsewhere.parent))
    try:
        server = importlib.import_module(f"{elsewhere.name}.server")
        with pytest.raises(SyntaxError):
            importlib.import_module(f"{elsewhere.name}.broken")
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(elsewhere.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == elsewhere.name]:
            del sys.modules[name]
    assert (server.table.y, server.late.x) == (2, 1)
    assert server.where.co_filename == server.__file__ == str(elsewhere / "server.py")


def test_what_a_crash_left_unfinished_is_removed(package: Path, tmp_path: Path) -> None:
    versions = Versions(tmp_path / "versions")
    (versions.folder / ".new-1" / "counter").mkdir(parents=True)
    assert versions.all() == []
    versions.clean()
    assert list(versions.folder.iterdir()) == []
