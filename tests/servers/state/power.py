"""What a power failure leaves of a store: images of its files, made from what its writer was seen to write.

A write is sure to be on the disk once a sync that began after it has ended. Of the others each sector may be as any of them
left it: they reach the disk in any order.
"""

import random
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
_note = struct.Struct("=c15sQQ")


class Note(NamedTuple):
    kind: str
    """w: write, b and e: a sync begins and ends, s: said."""
    name: str
    offset: int
    """Of a sync: its number."""
    data: bytes


def notes_of(path: Path) -> list[Note]:
    return list(_read(path.read_bytes()))


def _read(raw: bytes) -> Iterator[Note]:
    at = 0
    while at + _note.size <= len(raw):
        kind, name, offset, length = _note.unpack_from(raw, at)
        at += _note.size
        yield Note(kind.decode(), name.rstrip(b"\0").decode(), offset, raw[at : at + length])
        at += length


class Disk:
    """The files of a store as a writer's notes pass by."""

    def __init__(self, before: dict[str, bytes] | None = None) -> None:
        self._sure = {name: bytearray(data) for name, data in (before or {}).items()}
        self._later: dict[str, list[Note]] = defaultdict(list)
        self._begun: dict[tuple[str, int], int] = {}
        self.said = b""

    def take(self, note: Note) -> None:
        if note.kind == "s":
            self.said += note.data
            return
        later = self._later[note.name]
        match note.kind:
            case "w":
                later.append(note)
            case "b":
                self._begun[note.name, note.offset] = len(later)
            case "e":
                count = self._begun.pop((note.name, note.offset))
                for each in later[:count]:
                    _put(self._sure.setdefault(note.name, bytearray()), each.offset, each.data)
                del later[:count]
                for key in [key for key in self._begun if key[0] == note.name]:
                    self._begun[key] = max(0, self._begun[key] - count)

    def image(self, chance: random.Random) -> dict[str, bytes]:
        """What may be found after the power failed now."""
        images = {name: bytearray(data) for name, data in self._sure.items()}
        for name, later in self._later.items():
            file = images.setdefault(name, bytearray())
            # Mostly all or nothing of a file, else the odd case would hardly ever be met.
            share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
            kept: dict[int, int] = {}
            sectors = [
                (number, sector)
                for number, note in enumerate(later)
                for sector in range(note.offset // SECTOR, -(-(note.offset + len(note.data)) // SECTOR))
            ]
            for number, sector in sectors:
                if chance.random() < share:
                    kept[sector] = number
            for number, sector in sectors:
                # In order, up to the one that was written last: an earlier write of the same sector is below it.
                if number <= kept.get(sector, -1):
                    note = later[number]
                    start = max(note.offset, sector * SECTOR)
                    end = min(note.offset + len(note.data), (sector + 1) * SECTOR)
                    _put(file, start, note.data[start - note.offset : end - note.offset])
        return {name: bytes(data) for name, data in images.items()}


def _put(file: bytearray, offset: int, data: bytes) -> None:
    if len(file) < offset + len(data):
        file.extend(bytes(offset + len(data) - len(file)))
    file[offset : offset + len(data)] = data
