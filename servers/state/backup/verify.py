"""Proves a backup without restoring it anywhere: each file against the manifest, the chain, and the store that it makes."""

import tempfile
from pathlib import Path

import msgspec

from . import archive
from .archive import Manifest, Span
from .faults import Damaged
from .restore import restore


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    segments: int
    size: int
    covers: list[Span]
    revisions: int
    versions: int
    breaches: list[str]


def verify(folder: Path) -> Verified:
    """Raises `Refused` where there is no backup. What is found is told as breaches."""
    manifest = archive.existing(folder)
    breaches = _files(folder, manifest)
    revisions = versions = 0
    if not breaches:
        with tempfile.TemporaryDirectory(prefix="atoll-check-") as place:
            try:
                made = restore(folder, Path(place) / "store", None)
                revisions, versions = made.revisions, made.versions
            except Damaged as damage:
                breaches.append(str(damage))
    return Verified(
        node=manifest.node,
        segments=len(manifest.segments),
        size=sum(entry.size for entry in manifest.segments),
        covers=archive.spans(manifest),
        revisions=revisions,
        versions=versions,
        breaches=breaches,
    )


def _files(folder: Path, manifest: Manifest) -> list[str]:
    """Each segment is as it was written, and follows the one before it."""
    breaches = []
    upto = 0
    for entry in manifest.segments:
        if entry.after != upto:
            breaches.append(
                f"{folder / archive.MANIFEST}: {entry.file} follows revision {upto}, and begins after {entry.after}"
            )
        upto = entry.upto
        try:
            with archive.segment(folder, entry) as segment:
                segment.prove(entry.size, bytes.fromhex(entry.hash))
        except Damaged as damage:
            breaches.append(str(damage))
    return breaches
