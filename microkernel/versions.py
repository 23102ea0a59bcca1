"""Package versions: the copies a node runs from.

`load` and `swap` copy a package into `versions/<hash>/NAME` of the node's folder, and a process runs only
from there: whoever edits the source later changes nothing that runs, and restart, swap back and replay name
the hash. The hash covers what decides how the package behaves: sorted relative paths, whether a file is
executable, and contents. Caches and hidden files are no part of a package.
"""

import errno
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from atoll.ipc.errors import BadRequest, NotFound, TooLarge
from atoll.ipc.folders import sync_folder
from atoll.ipc.runtime import bytecode
from atoll.ipc.runtime.describe import Description

HASH_BYTES = 16
SIZE_LIMIT = 256 << 20
"""Bytes of a package at most: it holds code; data belongs in storage."""


class File(NamedTuple):
    """A file of a package."""

    path: str
    """Relative, with `/`."""
    executable: bool
    size: int


class Version(NamedTuple):
    package: str
    """The package's name: the folder's."""
    hash: str
    folder: Path
    """Holds the package as a folder of its name; what `Start.folder` names."""


def contents(package: Path) -> list[File]:
    """The files of a package, sorted by path. Raises `NotFound`, or `BadRequest` for links and other things
    that are not plain files: what they lead to could change under a version."""
    if not package.is_dir():
        raise NotFound(what="package folder", name=str(package))
    files = sorted(_walk(package, ""))
    total = sum(file.size for file in files)
    if total > SIZE_LIMIT:
        raise TooLarge(what=f"package {package}", size=total, limit=SIZE_LIMIT)
    if not any(file.path == "server.py" for file in files):
        raise BadRequest(where=str(package), expected="a package with a server.py", got="none")
    return files


def _walk(package: Path, below: str) -> Iterator[File]:
    with os.scandir(package / below) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            path = f"{below}{entry.name}"
            try:
                path.encode()
            except UnicodeEncodeError:
                raise BadRequest(
                    where=str(package), expected="files whose names are UTF-8", got=ascii(path)
                ) from None
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(package, f"{path}/")
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield File(path, bool(status.st_mode & stat.S_IXUSR), status.st_size)
            else:
                raise _no_plain(package, path)


def _opened(package: Path, path: str) -> BinaryIO:
    """A file of a package as it lies there now. What has become a link since it was listed may lead to what whoever loads
    the package must not read, and the kernel may. Raises `BadRequest`."""
    *folders, name = path.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    at = os.open(package, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for folder in folders:
            below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        # A pipe would be waited for.
        file = open(os.open(name, flags | os.O_NONBLOCK, dir_fd=at), "rb")  # noqa: SIM115 (the caller's)
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
    finally:
        os.close(at)
    raise _no_plain(package, path)


def _no_plain(package: Path, path: str) -> BadRequest:
    return BadRequest(
        where=str(package / path), expected="a plain file or folder", got="a link or special file"
    )


def hash_of(package: Path) -> str:
    """The content hash of a package folder, in hex."""
    return _hash(package, contents(package))


def _hash(package: Path, files: list[File]) -> str:
    whole = blake2b(digest_size=HASH_BYTES, person=b"atoll package")
    whole.update(b"%d %s\n" % (len(package.name.encode()), package.name.encode()))
    for file in files:
        with _opened(package, file.path) as source:
            data = source.read()
        path = file.path.encode()
        # Lengths before contents, so that no two different packages give the same bytes.
        whole.update(b"%d %d %d\n" % (len(path), file.executable, len(data)))
        whole.update(path)
        whole.update(data)
    return whole.hexdigest()


class Versions:
    """The `versions` folder of a node. One process writes there, the kernel; several of its threads at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, package: Path) -> Version:
        """Copies a package, unless this very content is there, and returns its version; durable on return.

        The copy is what is hashed, so an edit during the copy gives a version of its own, never a false
        name."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._fresh() as fresh:
            copy = fresh / package.resolve().name
            _copy(package.resolve(), copy, contents(package.resolve()), durable=True)
            version = self._version(copy.name, hash_of(copy))
            there = version.folder.exists()
            if not there:
                _seal(fresh, durable=True)
                there = not _moved(fresh, version.folder)
        sync_folder(self.folder)
        if there:
            self.verify(version)
        return version

    @contextmanager
    def _fresh(self) -> Iterator[Path]:
        """A folder of its own for what is not whole yet: several are loaded at once. What is left of it is removed."""
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            yield fresh
        finally:
            _remove(fresh)

    def keep(self, version: Version, described: Description) -> None:
        """Puts the bytecode of a description beside the package that it describes, unless there is some, or this is of
        other contents. Not durable: whoever reads it sees whether it is whole."""
        place = version.folder / bytecode.FILE
        if described.hash != version.hash or place.exists():
            return
        with self._fresh() as fresh:
            (fresh / place.name).write_bytes(described.bytecode)
            (fresh / place.name).chmod(0o444)
            os.rename(fresh / place.name, place)

    def get(self, package: str, hash: str) -> Version:
        """A version by its hash, of which an unambiguous beginning is enough. Raises `NotFound`,
        `BadRequest`.
        """
        found = [
            version for version in self.all() if version.package == package and version.hash.startswith(hash)
        ]
        if not found:
            raise NotFound(what=f"version of {package}", name=hash)
        if len(found) > 1:
            several = ", ".join(version.hash for version in found)
            raise BadRequest(
                where=f"version of {package}", expected="more of the hash", got=f"{hash}, as in {several}"
            )
        return found[0]

    def all(self) -> list[Version]:
        """Every version there is, by hash."""
        if not self.folder.is_dir():
            return []
        return [
            self._version(package.name, folder.name)
            for folder in sorted(self.folder.iterdir())
            if not folder.name.startswith(".")
            for package in folder.iterdir()
            if not package.name.startswith(".")
        ]

    def verify(self, version: Version) -> None:
        """Raises `NotFound` if it is not there, `BadRequest` if its contents are not what its name says."""
        found = hash_of(version.folder / version.package)
        if found != version.hash:
            raise BadRequest(
                where=str(version.folder),
                expected=f"contents with the hash {version.hash}",
                got=f"{found}: delete the folder and load the package again",
            )

    def clean(self) -> None:
        """At boot: removes copies that a crash left unfinished."""
        if self.folder.is_dir():
            for left in self.folder.glob(".new-*"):
                _remove(left)

    def _version(self, package: str, hash: str) -> Version:
        return Version(package, hash, self.folder / hash)


def readable_copy(package: Path, into: Path) -> Path:
    """A copy of a package that every user can read, whatever its owner's files are like; not durable. Returns its
    folder. Raises as `contents` does."""
    package = package.resolve()
    copy = into / package.name
    _copy(package, copy, contents(package), durable=False)
    _seal(into, durable=False)
    return copy


def _copy(package: Path, to: Path, files: list[File], *, durable: bool) -> None:
    to.mkdir(mode=0o755, parents=True)
    for file in files:
        target = to / file.path
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out, _opened(package, file.path) as source:
            shutil.copyfileobj(source, out)
            os.fchmod(out.fileno(), 0o555 if file.executable else 0o444)
            if durable:
                out.flush()
                os.fsync(out.fileno())


def _seal(folder: Path, *, durable: bool) -> None:
    """Makes all folders of a copy readable by every server's uid, and `durable`; the deepest first."""
    for path, _, _ in os.walk(folder, topdown=False):
        os.chmod(path, 0o755)
        if durable:
            sync_folder(Path(path))


def _moved(fresh: Path, into: Path) -> bool:
    """False: another load of the same contents came first."""
    try:
        os.rename(fresh, into)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


@cache
def interface_folders() -> tuple[str, ...]:
    """Where the interfaces of installed servers are: a package may import those of the servers it calls. Found, never
    imported here; as they were found and as they are, since a checkout is reached by links."""
    found = importlib.util.find_spec("atoll.servers")
    places = [] if found is None else list(found.submodule_search_locations or ())
    return tuple(dict.fromkeys(path for place in places for path in (place, os.path.realpath(place))))
