"""The blobs' part of a backup: `python -m atoll.servers.storage.backup take|verify ...`.

A backup keeps blobs in a folder of the very form that the server keeps them in, so that both are read and proved alike, and
a restore is a backup the other way round. What has an address there is not copied again. Files and packs are never changed
once they have their names, so they are read beside a server that runs. What a collection removes or puts together meanwhile
is looked for once more, until everything that is listed has been seen.

`take` copies once for each line on stdin, and prints one JSON object each time. Exit codes are those of docs/manual.md.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from .blobfile import prove
from .blobs import Blobs
from .collector import PACK_BYTES
from .durable import make_folder
from .interface import Corrupt
from .pack import Place, read_record, read_table

REFUSED, NO_ROOM = 6, 7
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_PACK: Final = re.compile(r"[0-9]{8,}")
_MOST_TOLD: Final = 1000


class Copied(msgspec.Struct, kw_only=True):
    """What came of one folder, or several."""

    blobs: int = 0
    bytes: int = 0
    """Of those that were copied."""
    damaged: list[str] = []
    """Files of the source that are not as they were written: what is in them is not in the copy."""
    left_out: list[str] = []
    """Folders of servers that hold no blobs."""


def is_blobs(folder: Path) -> bool:
    return (folder / "blobs").is_dir() and (folder / "packs").is_dir()


def copy(source: Path, target: Path, copied: Copied) -> None:
    """Everything that the source has and the target has not. Raises OSError."""
    archive = Blobs(target)
    archive.open()
    try:
        seen: set[str] = set()
        while fresh := [name for name in _listed(source) if name not in seen]:
            seen.update(fresh)
            for name in fresh:
                path = source / name
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # collected, or put together with others since it was listed
                try:
                    if name.startswith("packs"):
                        _copy_pack(archive, descriptor, path, copied)
                    else:
                        _copy_file(archive, descriptor, path, copied)
                finally:
                    os.close(descriptor)
    finally:
        archive.close()


def _listed(folder: Path) -> Iterator[str]:
    """Files and packs. Packs last: a blob that leaves one turns up in a later one, never in a file of its own."""
    for below in sorted((folder / "blobs").iterdir()):
        for path in below.iterdir():
            if _BLOB.fullmatch(path.name):
                yield f"blobs/{below.name}/{path.name}"
    yield from (f"packs/{path.name}" for path in (folder / "packs").iterdir() if _PACK.fullmatch(path.name))


def _copy_file(archive: Blobs, descriptor: int, path: Path, copied: Copied) -> None:
    address = bytes.fromhex(path.name)
    if archive.has(address):
        return
    temporary = archive.temporary()
    try:
        with open(temporary, "xb") as out, open(descriptor, "rb", closefd=False) as content:
            os.fchmod(out.fileno(), 0o600)
            shutil.copyfileobj(content, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        with open(temporary, "rb") as written:
            size = prove(written.fileno(), address)
        archive.install(temporary, archive.path(address))
    except Corrupt as damage:
        copied.damaged.append(f"{path}: at byte {damage.offset} of its content")
        return
    finally:
        temporary.unlink(missing_ok=True)
    copied.blobs += 1
    copied.bytes += size


def _copy_pack(archive: Blobs, descriptor: int, path: Path, copied: Copied) -> None:
    held: list[tuple[bytes, bytes]] = []
    size = 0
    for address, offset, length in read_table(descriptor).rows:
        if archive.has(address):
            continue
        try:
            content = read_record(descriptor, address, Place(0, offset, length))
        except Corrupt:
            copied.damaged.append(f"{path}: at byte {offset}")
            continue
        held.append((address, content))
        size += length
        if size >= PACK_BYTES:
            _put(archive, held, copied)
            held, size = [], 0
    _put(archive, held, copied)


def _put(archive: Blobs, held: list[tuple[bytes, bytes]], copied: Copied) -> None:
    if held:
        archive.admit(archive.write_pack(archive.temporary(), archive.next_pack(), held))
        copied.blobs += len(held)
        copied.bytes += sum(len(content) for _, content in held)


def copy_all(source: Path, target: Path) -> Copied:
    """The blobs of all servers whose folders lie in `source`, as SERVER/NEED. Raises OSError."""
    copied = Copied()
    for folder in _folders(source):
        name = folder.relative_to(source)
        if is_blobs(folder):
            make_folder(target / name)
            copy(folder, target / name, copied)
        elif any(folder.iterdir()):
            copied.left_out.append(str(name))
    return copied


def _folders(source: Path) -> list[Path]:
    if not source.is_dir():
        return []
    return sorted(path for path in source.glob("*/*") if path.is_dir())


def damages(source: Path) -> Iterator[str]:
    """Each place that is not as it was written, in the folders below one."""
    for folder in filter(is_blobs, _folders(source)):
        for name in _listed(folder):
            path = folder / name
            with open(path, "rb") as file:
                if name.startswith("blobs"):
                    try:
                        prove(file.fileno(), bytes.fromhex(path.name))
                    except Corrupt as damage:
                        yield f"{path}: at byte {damage.offset} of its content it is not as it was written"
                    continue
                table = read_table(file.fileno())
                if table.rebuilt:
                    yield f"{path}: at byte 0: its table is not as it was written"
                for address, offset, length in table.rows:
                    try:
                        read_record(file.fileno(), address, Place(0, offset, length))
                    except Corrupt:
                        yield f"{path}: at byte {offset}: a blob of {length} bytes is not as it was written"


def main(words: list[str]) -> int:
    match words:
        case ["take", source, target]:
            try:
                for _ in sys.stdin:
                    print(msgspec.json.encode(copy_all(Path(source), Path(target))).decode(), flush=True)
            except OSError as error:
                return _refuse(error, target)
            return 0
        case ["verify", source]:
            found = [damage for damage, _ in zip(damages(Path(source)), range(_MOST_TOLD), strict=False)]
            print(msgspec.json.encode(found).decode())
            return 0
    print("usage: python -m atoll.servers.storage.backup take SOURCE TARGET | verify FOLDER", file=sys.stderr)
    return 2


def _refuse(error: OSError, target: str) -> int:
    """One sentence, and the exit code. What is no matter of a person's is raised again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(
            f"the disk that holds {target} is full: what was there before is whole; free room there, and run it again",
            file=sys.stderr,
        )
        return NO_ROOM
    if isinstance(error, PermissionError):
        print(
            f"{error.filename}: this user may not read or write it; run it as the user that booted the node",
            file=sys.stderr,
        )
        return REFUSED
    raise error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
