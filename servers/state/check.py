"""Walks a real store and proves its invariants: `python -m atoll.servers.state.check STORE_DIR [--json]`.

Opens read-only, in one snapshot, so it may run beside a writer; a store that was not closed and that nobody has open is
first recovered from its log, as its writer would do it. Memory is constant: each table is read in
order, and what must agree with another is looked up there. A breach names its place as a path, for example
`versions/counter/'x'/17`.

What is proven: every row is of the form that `layout.py` gives; revisions are dense and their times rise; each
write that the feed tells of has its version and each version its write; a key's versions are ordered; each
large value is some version's, and there; each commit id and its revision name each other; every key lies in a
keyspace that there is, and in one of those who took part. What a value holds is its owner's affair.

Where something was compacted (`horizons.py`), a version or a revision may be missing up to a horizon, and a commit id up
to where ids were forgotten; and nowhere else. A revision that is there has something left of it. Pins name revisions that
there are.

The database trusts its own pages. So the walk is done by a child process, and a page that kills it is a breach.

Exit code 0: the store is whole; 1: breaches were found; 2: there is no store that could be read.
"""

import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import lmdb
import msgspec

from . import horizons, layout, pins
from .checkpoint import DATA_FILE
from .engine import Broken, Cursor, Engine, Row, Snapshot, Table
from .keyspaces import Keyspaces
from .lmdb_engine import LmdbEngine
from .ownership import FormatRefused, settle_format

MOST: Final = 1000
"""Breaches that are told of; a store with more is not worth the memory."""
UNREADABLE: Final = (msgspec.DecodeError, ValueError, struct.error)
_META: Final = (layout.FORMAT_KEY, layout.OWNER_KEY, layout.IDENTITY_KEY)

At = Callable[[str], None]
"""Told of each part of the store before it is walked."""


class Breach(msgspec.Struct, frozen=True):
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Report(msgspec.Struct, frozen=True):
    revisions: int
    versions: int
    keyspaces: int
    commit_ids: int
    breaches: list[Breach]


class _Counts:
    """What one table has that another must have as well."""

    def __init__(self) -> None:
        self.revisions = self.writes = self.versions = self.commit_ids = 0
        self.progress: dict[int, horizons.Progress] = {}

    def kept(self, keyspace: int) -> horizons.Progress:
        return self.progress.get(keyspace, horizons.NONE)


def check(engine: Engine, at: At = lambda place: None) -> Report:
    """Breaches of the store's invariants, `MOST` at most."""
    counts = _Counts()
    breaches: list[Breach] = []
    at("keyspaces")
    with engine.snapshot() as snapshot:
        try:
            keyspaces = Keyspaces(
                engine
            )  # keyspaces are only added: beside a writer this may know of later ones
        except (*UNREADABLE, Broken, lmdb.Error) as error:
            breaches.append(Breach("versions/store", f"the list of keyspaces cannot be read: {error}"))
            return Report(0, 0, 0, 0, breaches)
        for place, walk in (
            ("meta", _meta(snapshot, keyspaces, counts)),
            ("pins", _pins(snapshot, keyspaces)),
            ("feed", _feed(snapshot, keyspaces, counts)),
            ("versions", _versions(snapshot, keyspaces, counts)),
            ("values", _values(snapshot)),
            ("commits", _commits(snapshot, counts)),
        ):
            at(place)
            try:
                for breach in walk:
                    breaches.append(breach)
                    if len(breaches) >= MOST:
                        return _report(keyspaces, counts, breaches)
            except (*UNREADABLE, lmdb.Error, Broken) as error:
                breaches.append(Breach(place, f"cannot be read to its end: {error}"))
    if counts.versions != counts.writes and not breaches:
        what = f"{counts.versions} versions, and the feed tells of {counts.writes} writes"
        breaches.append(Breach("versions", what))
    return _report(keyspaces, counts, breaches)


def _report(keyspaces: Keyspaces, counts: _Counts, breaches: list[Breach]) -> Report:
    return Report(counts.revisions, counts.versions, len(keyspaces.by_name()), counts.commit_ids, breaches)


def _rows(cursor: Cursor) -> Iterator[Row]:
    """A table from its first row on. Rows that do not rise mean pages that lead back: `Broken`."""
    row = cursor.seek(b"")
    before: bytes | None = None
    while row is not None:
        if before is not None and row[0] <= before:
            raise Broken(f"the row {row[0].hex()} comes after {before.hex()}")
        yield row
        before = row[0]
        row = cursor.next()


def _meta(snapshot: Snapshot, keyspaces: Keyspaces, counts: _Counts) -> Iterator[Breach]:
    """No rows but format, owner, identity, and how far each keyspace was compacted."""
    last = snapshot.bounds()[1]
    for key, value in _rows(snapshot.cursor(Table.META)):
        if horizons.is_key(key):
            yield from _progress(keyspaces, counts, last, horizons.keyspace_of(key), value)
        elif key not in _META:
            yield Breach(f"meta/{key!r}", "is no row that a store of this format has")
    owner = snapshot.get(Table.META, layout.OWNER_KEY)
    if owner is None:
        if snapshot.bounds() != (0, 0):
            yield Breach("meta/owner", "nobody ever claimed this store, and yet it has revisions")
    elif len(owner) != 16:
        yield Breach("meta/owner", f"has {len(owner)} bytes in place of 16")


def _progress(
    keyspaces: Keyspaces, counts: _Counts, last: int, keyspace: int, value: bytes
) -> Iterator[Breach]:
    path = f"meta/horizon/{keyspaces.name(keyspace)}"
    if not keyspaces.exists(keyspace):
        yield Breach(path, f"is of keyspace {keyspace}, which does not exist")
    try:
        found = counts.progress[keyspace] = horizons.decode(value)
    except UNREADABLE as error:
        yield Breach(path, f"cannot be decoded: {error}")
        return
    furthest = max(found.horizon, found.aged, found.counted, found.forgotten, found.buried)
    if furthest >= last:
        yield Breach(path, f"was swept up to {furthest}, and the store ends at {last}")


def _pins(snapshot: Snapshot, keyspaces: Keyspaces) -> Iterator[Breach]:
    """Each pin is of a keyspace and a revision that there are."""
    last = snapshot.bounds()[1]
    try:
        found = pins.everything(snapshot)
    except UNREADABLE as error:
        yield Breach("pins", f"cannot be decoded: {error}")
        return
    for keyspace, pin in found:
        if not keyspaces.exists(keyspace) or not 1 <= pin.revision <= last:
            yield Breach(
                f"pins/{keyspaces.name(keyspace)}/{pin.name}",
                f"holds revision {pin.revision} of keyspace {keyspace}: none of the store's, which ends at {last}",
            )


def _feed(snapshot: Snapshot, keyspaces: Keyspaces, counts: _Counts) -> Iterator[Breach]:
    """Revisions are dense, times rise, each write has its version, each id points back."""
    compacted = max((max(each.horizon, each.forgotten) for each in counts.progress.values()), default=0)
    first, _ = snapshot.bounds()
    if first > compacted + 1:
        yield Breach("feed", f"begins at revision {first}: {first - compacted - 1} before it are missing")
    expected, before = first, 0
    for revision, raw in snapshot.feed(0):
        path = f"feed/{revision}"
        if revision < expected:
            raise Broken(f"revision {revision} comes after {expected - 1}")
        if revision != expected and revision - 1 > compacted:
            yield Breach(path, f"revisions are not dense: {max(expected, compacted + 1)} should come here")
        expected = revision + 1
        counts.revisions += 1
        try:
            time, entry = layout.time_of(raw), layout.entry_of(raw)
        except UNREADABLE as error:
            yield Breach(path, f"cannot be decoded: {error}")
            continue
        if time <= before:
            yield Breach(path, f"its time {time} does not come after {before}, that of the revision before")
        before = time
        yield from _entry(snapshot, keyspaces, counts, path, revision, entry)


def _entry(
    snapshot: Snapshot, keyspaces: Keyspaces, counts: _Counts, path: str, revision: int, entry: layout.Entry
) -> Iterator[Breach]:
    left = 0
    parties = {entry.badge, *entry.others}
    for badge in parties:
        if not keyspaces.exists(badge):
            yield Breach(path, f"was written by keyspace {badge}, which does not exist")
    if len(set(entry.keys)) != len(entry.keys):
        yield Breach(path, "names a key twice")
    for key in entry.keys:
        if len(key) < layout.KEYSPACE_SIZE:
            yield Breach(path, f"wrote {key!r}, which is in no keyspace")
            continue
        # Badge 0 is the kernel's unbadged capability, which may write anywhere.
        if layout.keyspace_of(key) not in parties and 0 not in parties:
            yield Breach(path, f"wrote {_name(keyspaces, key)}, outside the keyspaces of those who took part")
        if snapshot.get(Table.VERSIONS, layout.versioned(key, revision)) is not None:
            left += 1
        elif revision > counts.kept(layout.keyspace_of(key)).horizon:
            yield Breach(path, f"wrote {_name(keyspaces, key)}, of which there is no such version")
    counts.writes += left
    found = snapshot.get(Table.COMMITS, entry.id) if entry.id else None
    if not left and found != layout.pack(revision) and revision != snapshot.bounds()[1]:
        yield Breach(path, "nothing that it wrote is left, and it is still there")
    if entry.id:
        # Once it is forgotten it may be given again.
        if found != layout.pack(revision) and revision > counts.kept(entry.badge).forgotten:
            yield Breach(
                path, f"its commit id {entry.id.hex()} points to {found.hex() if found else 'nothing'}"
            )
        if keyspaces.exists(entry.badge) and entry.id[: layout.KEYSPACE_SIZE] != layout.prefix(entry.badge):
            yield Breach(
                path, f"its commit id {entry.id.hex()} is not of keyspace {entry.badge}, which wrote it"
            )


def _versions(snapshot: Snapshot, keyspaces: Keyspaces, counts: _Counts) -> Iterator[Breach]:
    """Each version is well formed, in a keyspace that exists, of a revision that there is, and has its value. Rows rise,
    and a row ends with the inverted revision: so a key's history is ordered, newest first."""
    last = snapshot.bounds()[1]
    for raw, stored in _rows(snapshot.cursor(Table.VERSIONS)):
        counts.versions += 1
        if (
            len(raw) < layout.KEYSPACE_SIZE + layout.OVERHEAD
            or raw[-layout.OVERHEAD : -8] != b"\0\0"
            or layout.escape(layout.key_of(raw)) != raw[: -layout.OVERHEAD]
        ):
            yield Breach(f"versions/{raw.hex()}", "is no row of a key's version")
            continue
        key, revision = layout.key_of(raw), layout.revision_of(raw)
        path = f"versions/{_name(keyspaces, key)}/{revision}"
        if not keyspaces.exists(layout.keyspace_of(key)):
            yield Breach(path, f"lies in keyspace {layout.keyspace_of(key)}, which does not exist")
        if not 1 <= revision <= last:
            yield Breach(path, f"its revision is none of the store's, which end at {last}")
        try:
            place = layout.place_of(raw, stored)
            layout.value_of(snapshot, raw, stored)
        except Broken:
            yield Breach(
                path,
                f"its value should lie at values/{place.hex()}, and nothing is there"
                if place
                else "has no value",
            )


def _values(snapshot: Snapshot) -> Iterator[Breach]:
    """Each value is that of a version which points to it."""
    for at, _ in _rows(snapshot.cursor(Table.VALUES)):
        if not _is_pointed_to(snapshot, at):
            yield Breach(f"values/{at.hex()}", "no version points to it")


def _is_pointed_to(snapshot: Snapshot, at: bytes) -> bool:
    if len(at) != 12:
        return False
    revision, index = int.from_bytes(at[:8], "big"), int.from_bytes(at[8:], "big")
    event = snapshot.event(revision)
    if event is None:
        return False
    try:
        keys = layout.entry_of(event).keys
        row = layout.versioned(keys[index], revision)
    except (*UNREADABLE, IndexError):
        return False
    stored = snapshot.get(Table.VERSIONS, row)
    return stored is not None and layout.place_of(row, stored) == at


def _commits(snapshot: Snapshot, counts: _Counts) -> Iterator[Breach]:
    for id, raw in _rows(snapshot.cursor(Table.COMMITS)):
        counts.commit_ids += 1
        path = f"commits/{id.hex()}"
        if len(raw) != 8:
            yield Breach(path, f"points to {raw.hex()}, which is no revision")
            continue
        revision = int.from_bytes(raw, "big")
        event = snapshot.event(revision)
        if event is None:
            yield Breach(path, f"points to revision {revision}, which is not there")
            continue
        try:
            found = layout.entry_of(event).id
        except UNREADABLE:
            yield Breach(path, f"points to revision {revision}, which cannot be decoded")
            continue
        if found != id:
            yield Breach(path, f"points to revision {revision}, which has another id")


def _name(keyspaces: Keyspaces, key: bytes) -> str:
    return f"{keyspaces.name(layout.keyspace_of(key))}/{key[layout.KEYSPACE_SIZE :]!r}"


def check_folder(folder: str | Path, at: At = lambda place: None) -> Report:
    """Opens the store in a folder read-only and checks it. Raises `FormatRefused`, or `OSError`/`lmdb.Error`
    if it cannot be opened."""
    if not (Path(folder) / DATA_FILE).is_file():
        raise FileNotFoundError(f"there is no store in {folder}: {DATA_FILE} is missing")
    engine = LmdbEngine(folder, read_only=True)
    try:
        settle_format(engine, read_only=True)
        return check(engine, at)
    finally:
        engine.close()


def check_apart(folder: str) -> Report | str:
    """`check_folder` in a child process; a sentence where there is no store to be read."""
    place = mmap.mmap(-1, mmap.PAGESIZE)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _tell(folder, write, place)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        answer = told.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return msgspec.msgpack.decode(answer, type=Report | str)
    where = place[:].rstrip(b"\0").decode()
    how = signal.Signals(os.WTERMSIG(status)).name
    return Report(0, 0, 0, 0, [Breach(where, f"pages are damaged: reading them ended with {how}")])


def _tell(folder: str, write: int, place: mmap.mmap) -> None:
    """In the child: walk, and send what came of it."""

    def at(where: str) -> None:
        place[:] = where.encode().ljust(len(place), b"\0")

    at("opening")
    answer: Report | str
    try:
        answer = check_folder(folder, at)
    except (OSError, FormatRefused, Broken, lmdb.Error) as error:
        answer = str(error)
    with os.fdopen(write, "wb") as out:
        out.write(msgspec.msgpack.encode(answer))


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    as_json = "--json" in arguments
    folders = [argument for argument in arguments if not argument.startswith("-")]
    if len(folders) != 1 or any(argument.startswith("-") and argument != "--json" for argument in arguments):
        print("usage: python -m atoll.servers.state.check STORE_DIR [--json]", file=sys.stderr)
        return 2
    report = check_apart(folders[0])
    if isinstance(report, str):
        print(
            json.dumps({"error": report}) if as_json else f"check: {report}",
            file=None if as_json else sys.stderr,
        )
        return 2
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        for breach in report.breaches:
            print(breach)
        more = " or more" if len(report.breaches) >= MOST else ""
        verdict = f"{len(report.breaches)}{more} breaches" if report.breaches else "whole"
        print(
            f"{report.revisions} revisions, {report.versions} versions, {report.keyspaces} keyspaces, "
            f"{report.commit_ids} commit ids: {verdict}"
        )
    return 1 if report.breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
