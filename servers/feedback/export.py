"""A training set as a file of JSON lines: `python -P -m atoll.servers.feedback.export TASK`.

Each line is a row of datasets.py, its columns in a fixed order. The same moment gives the same bytes, whatever came
or was taken back since, unless somebody was purged, whose examples it leaves out and counts; and a hash of them is
printed: two files with one hash train the same. The file has its name only when it is whole.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from atoll.ipc.attach import connect
from atoll.ipc.errors import AtollError
from atoll.ipc.folders import sync_folder
from atoll.ipc.system.state import AsOf

from . import datasets
from .datasets import Datasets, Row, Rows


class Written(NamedTuple):
    rows: int
    bytes: int
    hash: str
    """blake2b-256 of the file."""


def lines(rows: Iterable[Row]) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode
    return (encode(row) + b"\n" for row in rows)


def write(path: Path, rows: Iterable[Row]) -> Written:
    """Write rows to `path`, which is there, whole and durable, when this returns. Raises OSError, and what a
    call raises; what stood there before then still does, unless it was the new name that could not be made durable.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("xb") as file:
            written = _count(rows, file.write)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return written


def _count(rows: Iterable[Row], put: Callable[[bytes], object]) -> Written:
    content = hashlib.blake2b(digest_size=32)
    count = size = 0
    for line in lines(rows):
        put(line)
        content.update(line)
        count += 1
        size += len(line)
    return Written(count, size, content.hexdigest())


KINDS = ("preferences", "pairs", "unpaired", "completions")


def select(data: Datasets, given: argparse.Namespace, revision: int) -> Rows:
    """The rows that the command line asks for."""
    conversational = given.conversational
    match given.kind:
        case "pairs":
            return data.pairs(
                given.task, given.count, given.seed, revision, given.min_trust, conversational=conversational
            )
        case "unpaired":
            return data.unpaired(
                given.task, revision, given.min_trust, good=given.good, conversational=conversational
            )
        case "completions":
            return data.completions(given.task, revision, given.min_trust, conversational=conversational)
    return data.preferences(given.task, revision, given.min_trust, conversational=conversational)


def moment(text: str) -> AsOf:
    """A revision, or a time as ISO 8601 writes it. Raises ValueError."""
    return int(text) if text.isdecimal() else datetime.fromisoformat(text).timestamp()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -P -m atoll.servers.feedback.export", description="A training set as JSON lines."
    )
    parser.add_argument("task")
    parser.add_argument("--kind", choices=KINDS, default="preferences")
    parser.add_argument("--as-of", type=moment, metavar="MOMENT", help="a revision or a time; else now")
    parser.add_argument("--min-trust", type=float, default=0.0, metavar="TRUST")
    parser.add_argument("--count", type=int, default=1000, help="of pairs")
    parser.add_argument("--seed", type=int, default=0, help="of pairs")
    parser.add_argument("--good", type=float, default=datasets.GOOD, help="least score of a good completion")
    parser.add_argument("--conversational", action="store_true", help="texts as lists of messages")
    parser.add_argument("--output", type=Path, metavar="FILE", help="else to the standard output")
    return parser


def main() -> int:
    """The exit code: 0, or 1 with a sentence; argparse ends with 2 where the command line is wrong."""
    given = _parser().parse_args()
    try:
        with connect(name="export") as node:
            data = datasets.of(node)
            revision = data.moment(given.as_of)
            rows = select(data, given, revision)
            if given.output is None:
                written = _count(rows, sys.stdout.buffer.write)
                sys.stdout.flush()
            else:
                written = write(given.output, rows)
    except (AtollError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    told = f"{written.rows} rows of {given.task} as of revision {revision}: {written.hash}"
    left_out = f"; {rows.purged} more were left out, whose texts were purged" if rows.purged else ""
    print(told + left_out, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
