"""What whoever has the files of a node or of a backup makes of them: all that is in them, and what of it opens with a
keyring."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.ipc.private.envelope import label_in, open_
from atoll.servers.keys.keyring import Keyring
from atoll.servers.state import export, layout
from atoll.servers.state.backup import archive
from atoll.servers.state.backup.segment import AFRESH, MAIN, Segment
from atoll.servers.state.engine import Table
from atoll.servers.state.export import Record
from atoll.servers.state.lmdb_engine import LmdbEngine


class Row(NamedTuple):
    """One version of a key, deleted ones aside."""

    key: bytes
    """As its keyspace has it."""
    value: bytes


class Read(NamedTuple):
    """What became of sealed rows in a thief's hands."""

    words: list[bytes]
    closed: list[bytes]
    """By label, those that no key of the ring's opens."""


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def records(folder: Path) -> Iterator[Record]:
    """What the segments of a backup hold. They are compressed: their bytes alone show nothing."""
    for path in sorted((folder / archive.ROWS).iterdir()):
        with Segment(path) as segment:
            for section in (MAIN, AFRESH):
                yield from segment.rising(section, layout.LAST)


def holding(folder: Path, words: bytes) -> list[Path]:
    """The files below a folder that have these bytes in them, compressed or not."""
    found = [path for path in files(folder) if words in path.read_bytes()]
    if archive.is_one(folder) and any(words in export.encode([record]) for record in records(folder)):
        found.append(folder / archive.ROWS)
    return found


def copy_of(store: Path, pid: int, folder: Path) -> Path:
    """The files of a store as they are at one moment; its process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            pass
        shutil.copytree(store, folder)
    finally:
        os.kill(pid, signal.SIGCONT)
    return folder


def in_store(folder: Path) -> list[Row]:
    """Every version in a copy of a store."""
    engine = LmdbEngine(folder, read_only=True)
    try:
        with engine.snapshot() as snapshot:
            cursor = snapshot.cursor(Table.VERSIONS)
            found, row = list[Row](), cursor.seek(b"")
            while row is not None:
                value = layout.value_of(snapshot, *row)
                if value is not None:
                    found.append(Row(layout.key_of(row[0])[layout.KEYSPACE_SIZE :], value))
                row = cursor.next()
            return found
    finally:
        engine.close()


def in_backup(folder: Path) -> list[Row]:
    """Every version in the segments of a backup."""
    found = []
    for record in records(folder):
        keys = layout.entry_of(record.event).keys
        found += [
            Row(keys[n][layout.KEYSPACE_SIZE :], value) for n, value in record.rows if value is not None
        ]
    return found


def read(rows: list[Row], keyring: Keyring, badge: int) -> Read:
    """Opens all that is sealed in a keyspace with what the keyring gives for it. AssertionError where it gives a key that
    does not open it."""
    sealed = [(label, row) for row in rows if (label := label_in(row.value)) is not None]
    assert sealed, "there is nothing to open"
    keys = {label: keyring.key(badge, label) for label, _ in sealed}
    ciphers = {label: AESGCM(key) for label, key in keys.items() if key}
    words, closed = [], []
    for label, (key, value) in sealed:
        if label in ciphers:
            words.append(open_(ciphers[label], value, badge, key))
            continue
        closed.append(label)
        for cipher in ciphers.values():
            with pytest.raises(InvalidTag):
                open_(cipher, value, badge, key)
    return Read(words, closed)
