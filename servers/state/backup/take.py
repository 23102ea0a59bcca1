"""Takes a backup: what was written since the last one, into a new segment.

The store goes on meanwhile. The revision that the backup reaches is the store's head when it begins; what it reads down
from there is consistent though compaction goes on (`export.py`), and what compaction removed since the last backup is
accounted for (`chain.py`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from atoll.ipc import clock
from atoll.ipc.attach import Node, connect
from atoll.ipc.folders import sync_folder
from atoll.ipc.system.state import Outline, State

from .. import export
from ..checkpoint import DATA_FILE
from ..export import Record
from ..lmdb_engine import LmdbEngine
from ..ownership import settle_format
from . import archive, chain
from .archive import Entry, Manifest, Took
from .faults import Refused, needing_room
from .segment import AFRESH, MAIN, Writer

ROUNDS: Final = 8
"""Segments of one backup at most: a further one is needed where compaction overtook the one before."""


class Overtaken(Refused):
    """Compaction gave up the past faster than it could be read."""


class Source(Protocol):
    """A store that is to be backed up."""

    def outline(self) -> Outline: ...

    def records(self, upto: int, down_to: int, keyspaces: list[int]) -> Iterator[list[Record]]:
        """Newest first, as `State.export`."""
        ...


class Running:
    """The store of a node that runs, asked over a channel."""

    def __init__(self, node: Node) -> None:
        self._state = node.open("state", State, ["backup"])

    def outline(self) -> Outline:
        return self._state.outline.now()

    def records(self, upto: int, down_to: int, keyspaces: list[int]) -> Iterator[list[Record]]:
        held = bytearray()
        for piece in self._state.export.now(upto, down_to, keyspaces):
            if not piece.offset:
                held.clear()  # it broke off, and came again
            held += piece.data
            if not piece.more:
                yield export.decode(held)
                held.clear()


class Stopped:
    """The file of a store that no process has open for writing."""

    def __init__(self, engine: LmdbEngine) -> None:
        self._engine = engine

    def outline(self) -> Outline:
        return export.outline(self._engine)

    def records(self, upto: int, down_to: int, keyspaces: list[int]) -> Iterator[list[Record]]:
        for block in export.blocks(self._engine, upto, down_to, frozenset(keyspaces)):
            yield block.records


@contextmanager
def running(folder: Path) -> Iterator[tuple[Source, str]]:
    """The store of a running node, and the image's text."""
    with connect(str(folder.absolute()), name="atoll backup") as node:
        yield Running(node), node.kernel.node.now().image


@contextmanager
def stopped(folder: Path) -> Iterator[tuple[Source, str]]:
    """The store in a folder."""
    if not (folder / DATA_FILE).is_file():
        raise Refused(f"there is no store in {folder}: {DATA_FILE} is missing")
    engine = LmdbEngine(folder, read_only=True)
    try:
        settle_format(engine, read_only=True)
        yield Stopped(engine), ""
    finally:
        engine.close()


class Taken(NamedTuple):
    """A backup that does not count yet: what the manifest will be, and what is then to be told."""

    manifest: Manifest
    took: Took


def take(folder: Path, node: str, source: Source, image: str) -> Taken:
    """Adds what is new to the folder. The caller seals it once all that the rows name is there. Raises `Refused`,
    `NoRoom`, `Damaged`."""
    manifest = archive.read(folder)
    with _room(folder, manifest):
        archive.clean(folder, manifest)
        return _take(folder, node, source, image, manifest)


def seal(folder: Path, taken: Taken) -> Took:
    """A backup counts from now on. Raises `NoRoom`."""
    with _room(folder, archive.read(folder)):
        archive.put(folder, taken.manifest)
    return taken.took


def _room(folder: Path, manifest: Manifest | None) -> AbstractContextManager[None]:
    consolation = "nothing was backed up yet"
    if manifest is not None and manifest.segments:
        consolation = f"the backup that reaches revision {manifest.segments[-1].upto} is whole"
    return needing_room(folder, consolation)


def _take(folder: Path, node: str, source: Source, image: str, manifest: Manifest | None) -> Taken:
    taken, begun = _begin(source)
    if not begun.head:
        raise Refused("the store has no revisions yet: there is nothing to back up")
    identity = begun.store.hex()
    if manifest is None:
        manifest = Manifest(format=archive.FORMAT, store=identity, node=node, image="", segments=[])
    if manifest.store != identity:
        raise Refused(
            f"{folder} holds backups of another store, of node {manifest.node!r} before it was restored or made anew: "
            "name a new folder"
        )
    before = manifest.segments[-1] if manifest.segments else None
    _goes_on(folder, source, before, begun)
    entries = list(manifest.segments)
    first = entries[-1].upto if entries else 0
    for _ in range(ROUNDS):
        if not entries or begun.head > entries[-1].upto:
            entries.append(_segment(folder, source, entries, taken, begun))
        else:
            entries[-1] = msgspec.structs.replace(entries[-1], taken=max(taken, entries[-1].taken))
        if entries[-1].floor < entries[-1].upto:
            break
        taken, begun = _begin(source)
    else:
        raise Overtaken(
            f"compaction gave up the past faster than it could be read, {ROUNDS} times: set a longer `grace` for the store"
        )
    new = entries[len(manifest.segments) :]
    made = Manifest(
        format=archive.FORMAT, store=identity, node=node, image=image or manifest.image, segments=entries
    )
    took = Took(
        node=node,
        after=first,
        upto=entries[-1].upto,
        time=entries[-1].time,
        revisions=sum(entry.revisions for entry in new),
        size=sum(entry.size for entry in new),
        covers=archive.spans(made),
    )
    return Taken(made, took)


def _begin(source: Source) -> tuple[int, Outline]:
    """What there is, and a time in ns by which nothing more had been committed: so the clock is read first."""
    now, begun = int(clock.wall() * 1e9), source.outline()
    return max(now, begun.time), begun


def _goes_on(folder: Path, source: Source, before: Entry | None, begun: Outline) -> None:
    """That the store is the one that was backed up, and later. Raises `Refused`."""
    if before is None:
        return
    forked = begun.head < before.upto
    if not forked:
        for records in source.records(before.upto, before.upto - 1, []):
            forked = any(_hash(record) != before.last for record in records)
    if forked:
        raise Refused(
            f"the store, at revision {begun.head}, is not what became of revision {before.upto}, which {folder} reaches: "
            "its file was put back; name a new folder"
        )


def _segment(folder: Path, source: Source, entries: list[Entry], taken: int, begun: Outline) -> Entry:
    after, upto = (entries[-1].upto if entries else 0), begun.head
    standing = None
    if entries:
        with archive.segment(folder, entries[-1]) as last:
            standing = last.trailer.standing
    part = folder / archive.ROWS / "part"
    part.unlink(missing_ok=True)
    writer = Writer(part)
    try:
        last_event = ""
        for records in source.records(upto, after, []):
            for record in records:
                if record.revision == upto:
                    last_event = _hash(record)
            writer.add(MAIN, records)
        ended = chain.decoded(source.outline().compacted)
        afresh = chain.lost(after, standing, ended)
        if afresh:
            for records in source.records(after, 0, afresh):
                writer.add(AFRESH, records)
            ended |= {
                keyspace: progress
                for keyspace, progress in chain.decoded(source.outline().compacted).items()
                if keyspace in afresh
            }
        table = chain.stand(after, standing, afresh, chain.decoded(begun.compacted), ended)
        sealed = writer.seal(after, upto, table)
    except BaseException:
        writer.discard()
        raise
    name = f"{after}-{upto}"
    part.rename(part.with_name(name))
    sync_folder(part.parent)
    return Entry(
        file=name,
        after=after,
        upto=upto,
        floor=chain.floor(table),
        began=sealed.began,
        time=begun.time,
        taken=taken,
        last=last_event,
        boot=begun.boot,
        revisions=sealed.revisions,
        size=sealed.size,
        hash=sealed.hash.hex(),
    )


def _hash(record: Record) -> str:
    return blake2b(record.event, digest_size=16).hexdigest()
