"""Walks a real store and proves its invariants: `python -m atoll.servers.state.check STORE_DIR [--json]`.

Opens read-only, in one snapshot, so it may run beside a writer. Memory is constant: each table is read in
order, and what must agree with another is looked up there. A breach names its place as a path, for example
`versions/counter/'x'/17`.

Exit code 0: the store is whole; 1: breaches were found; 2: there is no store that could be read.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec

from . import layout
from .engine import Broken, Engine, Snapshot, Table
from .keyspaces import Keyspaces
from .lmdb_engine import FILE, LmdbEngine
from .ownership import FormatRefused, settle_format


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


def check(engine: Engine) -> Report:
    """Every breach of the store's invariants."""
    keyspaces = Keyspaces(engine)
    with engine.snapshot() as snapshot:
        counts = {"revisions": 0, "writes": 0, "versions": 0, "commit_ids": 0, "apart": 0}
        breaches = [
            *_meta(snapshot),
            *_feed(snapshot, keyspaces, counts),
            *_versions(snapshot, keyspaces, counts),
            *_values(snapshot, counts),
            *_commits(snapshot, counts),
        ]
        if counts["versions"] != counts["writes"] and not breaches:
            breaches.append(
                Breach(
                    "versions",
                    f"{counts['versions']} versions, and the feed tells of {counts['writes']} writes",
                )
            )
        return Report(
            counts["revisions"], counts["versions"], len(keyspaces.by_name()), counts["commit_ids"], breaches
        )


def _meta(snapshot: Snapshot) -> Iterator[Breach]:
    owner = snapshot.get(Table.META, layout.OWNER_KEY)
    if owner is None:
        if snapshot.bounds() != (0, 0):
            yield Breach("meta/owner", "nobody ever claimed this store, and yet it has revisions")
    elif len(owner) != 16:
        yield Breach("meta/owner", f"has {len(owner)} bytes in place of 16")


def _feed(snapshot: Snapshot, keyspaces: Keyspaces, counts: dict[str, int]) -> Iterator[Breach]:
    """Revisions are dense, times rise, each write has its version, each id points back."""
    expected, before = snapshot.bounds()[0], 0
    for revision, raw in snapshot.feed(0):
        path = f"feed/{revision}"
        if revision != expected:
            yield Breach(path, f"revisions are not dense: {expected} should come here")
        expected = revision + 1
        counts["revisions"] += 1
        try:
            time, entry = layout.time_of(raw), layout.entry_of(raw)
        except (msgspec.DecodeError, ValueError) as error:
            yield Breach(path, f"cannot be decoded: {error}")
            continue
        if time <= before:
            yield Breach(path, f"its time {time} does not come after {before}, that of the revision before")
        before = time
        counts["writes"] += len(entry.keys)
        yield from _entry(snapshot, keyspaces, revision, entry)


def _entry(snapshot: Snapshot, keyspaces: Keyspaces, revision: int, entry: layout.Entry) -> Iterator[Breach]:
    path = f"feed/{revision}"
    parties = {entry.badge, *entry.others}
    if len(set(entry.keys)) != len(entry.keys):
        yield Breach(path, "names a key twice")
    for key in entry.keys:
        keyspace = layout.keyspace_of(key)
        # Badge 0 is the kernel's unbadged capability, which may write anywhere.
        if keyspace not in parties and 0 not in parties:
            yield Breach(path, f"wrote {_name(keyspaces, key)}, outside the keyspaces of those who took part")
        if snapshot.get(Table.VERSIONS, layout.versioned(key, revision)) is None:
            yield Breach(path, f"wrote {_name(keyspaces, key)}, of which there is no such version")
    if entry.id:
        found = snapshot.get(Table.COMMITS, entry.id)
        if found != layout.pack(revision):
            yield Breach(
                path, f"its commit id {entry.id.hex()} points to {found.hex() if found else 'nothing'}"
            )


def _versions(snapshot: Snapshot, keyspaces: Keyspaces, counts: dict[str, int]) -> Iterator[Breach]:
    """Each version is well formed, in a keyspace that exists, newest first, told of by the feed, and has its
    value."""
    last = snapshot.bounds()[1]
    cursor = snapshot.cursor(Table.VERSIONS)
    row = cursor.seek(b"")
    key, older_than = b"", 0
    while row is not None:
        counts["versions"] += 1
        raw, stored = row
        if len(raw) < layout.KEYSPACE_SIZE + layout.OVERHEAD or raw[-layout.OVERHEAD : -8] != b"\0\0":
            yield Breach(f"versions/{raw.hex()}", "is no row of a key's version")
        else:
            here, revision = layout.key_of(raw), layout.revision_of(raw)
            path = f"versions/{_name(keyspaces, here)}/{revision}"
            if here == key and revision >= older_than:
                yield Breach(
                    path, f"lies after revision {older_than}: a key's history must be ordered, newest first"
                )
            key, older_than = here, revision
            if not keyspaces.exists(layout.keyspace_of(here)):
                yield Breach(path, f"lies in keyspace {layout.keyspace_of(here)}, which does not exist")
            if not 1 <= revision <= last:
                yield Breach(path, f"its revision is none of the store's, which end at {last}")
            yield from _stored(snapshot, path, raw, stored, counts)
        row = cursor.next()


def _stored(
    snapshot: Snapshot, path: str, raw: bytes, stored: bytes, counts: dict[str, int]
) -> Iterator[Breach]:
    at = layout.place_of(raw, stored)
    if at is not None:
        counts["apart"] += 1
    try:
        layout.value_of(snapshot, raw, stored)
    except Broken:
        yield Breach(
            path,
            "has no value"
            if at is None
            else f"its value should lie at values/{at.hex()}, and nothing is there",
        )


def _values(snapshot: Snapshot, counts: dict[str, int]) -> Iterator[Breach]:
    """No value lies there that no version points to. Counting suffices: each version's own place was looked
    up above."""
    cursor = snapshot.cursor(Table.VALUES)
    row = cursor.seek(b"")
    found = 0
    while row is not None:
        found += 1
        row = cursor.next()
    if found != counts["apart"]:
        yield Breach("values", f"{found} values lie here, and {counts['apart']} versions point to one")


def _commits(snapshot: Snapshot, counts: dict[str, int]) -> Iterator[Breach]:
    cursor = snapshot.cursor(Table.COMMITS)
    row = cursor.seek(b"")
    while row is not None:
        counts["commit_ids"] += 1
        id, raw = row
        revision = int.from_bytes(raw, "big")
        event = snapshot.event(revision)
        if event is None:
            yield Breach(f"commits/{id.hex()}", f"points to revision {revision}, which is not there")
        elif layout.entry_of(event).id != id:
            yield Breach(f"commits/{id.hex()}", f"points to revision {revision}, which has another id")
        row = cursor.next()


def _name(keyspaces: Keyspaces, key: bytes) -> str:
    return f"{keyspaces.name(layout.keyspace_of(key))}/{key[layout.KEYSPACE_SIZE :]!r}"


def check_folder(folder: str | Path) -> Report:
    """Opens the store in a folder read-only and checks it. Raises `FormatRefused`, or `OSError`/`lmdb.Error`
    if it cannot be opened."""
    if not (Path(folder) / FILE).is_file():
        raise FileNotFoundError(f"there is no store in {folder}: {FILE} is missing")
    engine = LmdbEngine(folder, read_only=True)
    try:
        settle_format(engine, read_only=True)
        return check(engine)
    finally:
        engine.close()


def main(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    as_json = "--json" in arguments
    folders = [argument for argument in arguments if not argument.startswith("-")]
    if len(folders) != 1 or any(argument.startswith("-") and argument != "--json" for argument in arguments):
        print("usage: python -m atoll.servers.state.check STORE_DIR [--json]", file=sys.stderr)
        return 2
    try:
        report = check_folder(folders[0])
    except (OSError, FormatRefused, Broken, lmdb.Error) as error:
        print(
            json.dumps({"error": str(error)}) if as_json else f"check: {error}",
            file=None if as_json else sys.stderr,
        )
        return 2
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        for breach in report.breaches:
            print(breach)
        verdict = f"{len(report.breaches)} breaches" if report.breaches else "whole"
        print(
            f"{report.revisions} revisions, {report.versions} versions, {report.keyspaces} keyspaces, "
            f"{report.commit_ids} commit ids: {verdict}"
        )
    return 1 if report.breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
