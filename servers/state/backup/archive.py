"""The folder of a backup: segments, and the manifest that says which of them count.

    manifest               what was backed up, one JSON object; replaced by rename, the last step of a backup
    rows/AFTER-UPTO        segments
    blobs/ versions/       kept by others: `servers/storage`, the kernel

A file that the manifest does not name is what a backup left that was ended: the next one removes it.
"""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from atoll.ipc.folders import sync_folder

from .faults import Damaged, Refused
from .segment import Segment

MANIFEST: Final = "manifest"
ROWS: Final = "rows"
FORMAT: Final = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One segment, and the backup that it was the last of."""

    file: str
    after: int
    upto: int
    floor: int
    """Revisions up to here, of the segment's own, cannot all be read as they were: compaction was faster."""
    began: int
    """When its first revision was committed, in ns."""
    time: int
    """When `upto` was."""
    taken: int
    """When the backup was begun, in ns: nothing more had been committed by then."""
    last: str
    """Hash of the event at `upto`: by it the next backup knows that it goes on where this one ended."""
    boot: int
    revisions: int
    size: int
    hash: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    store: str
    """The store's identity, in hex."""
    node: str
    image: str
    """The image that the node was last seen booted from, as text; empty: it never ran while it was backed up."""
    segments: list[Entry]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Revisions that can be restored, with the times of the first and the last one in ns."""

    first: int
    last: int
    began: int
    ended: int


class Described(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    covers: list[Span]


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """What one backup of the rows came to."""

    node: str
    after: int
    upto: int
    time: int
    revisions: int
    size: int
    covers: list[Span]


class _Form(msgspec.Struct, frozen=True):
    """What every later format will have as well."""

    format: int = FORMAT


class _Guarded(msgspec.Struct, frozen=True):
    check: str
    content: msgspec.Raw


def is_one(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> Manifest | None:
    """What was backed up; None: nothing yet. Raises `Damaged`, or `Refused` for a later format."""
    try:
        return _read(folder / MANIFEST)
    except FileNotFoundError:
        return None


def existing(folder: Path) -> Manifest:
    """Raises `Refused` where there is no backup."""
    manifest = read(folder)
    if manifest is None or not manifest.segments:
        raise Refused(
            f"{folder} holds no backup that was finished: name the folder that `atoll backup` was given"
        )
    return manifest


def described(folder: Path) -> Described:
    """Raises `Refused` where there is no backup."""
    manifest = existing(folder)
    return Described(node=manifest.node, covers=spans(manifest))


def spans(manifest: Manifest) -> list[Span]:
    """What can be restored, oldest first; neighbours are put together."""
    found: list[Span] = []
    for entry in manifest.segments:
        first = max(entry.after, entry.floor) + 1
        if first > entry.upto:
            continue
        if found and found[-1].last + 1 == first:
            found[-1] = Span(first=found[-1].first, last=entry.upto, began=found[-1].began, ended=entry.time)
        else:
            began = entry.began if first == entry.after + 1 else 0
            found.append(Span(first=first, last=entry.upto, began=began, ended=entry.time))
    return found


def put(folder: Path, manifest: Manifest) -> None:
    """Makes a manifest durable in place of the one that was there."""
    raw = msgspec.json.encode(manifest)
    data = msgspec.json.encode(_Guarded(_hash(raw), msgspec.Raw(raw))) + b"\n"
    fresh = folder / f"{MANIFEST}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / MANIFEST)
    sync_folder(folder)


def clean(folder: Path, manifest: Manifest | None) -> None:
    """Removes what backups left that were ended."""
    named = {entry.file for entry in manifest.segments} if manifest is not None else set()
    rows = folder / ROWS
    rows.mkdir(mode=0o700, exist_ok=True)
    for path in rows.iterdir():
        if path.name not in named:
            path.unlink()
    (folder / f"{MANIFEST}.new").unlink(missing_ok=True)


def segment(folder: Path, entry: Entry) -> Segment:
    """Raises `Damaged`."""
    return Segment(folder / ROWS / entry.file)


def _read(path: Path) -> Manifest:
    raw = path.read_bytes()
    try:
        guarded = msgspec.json.decode(raw, type=_Guarded)
        if _hash(bytes(guarded.content)) != guarded.check:
            raise Damaged(f"{path}: at byte 0: its check says that it is not as it was written")
        form = msgspec.json.decode(guarded.content, type=_Form)
        if form.format > FORMAT:
            raise Refused(
                f"{path} has format {form.format}, this version reads up to {FORMAT}: use the version that wrote it"
            )
        return msgspec.json.decode(guarded.content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path}: at byte 0: it cannot be decoded ({error})") from None


def _hash(raw: bytes) -> str:
    return blake2b(raw, digest_size=16).hexdigest()
