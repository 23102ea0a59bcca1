"""The main job's long part: texts into storage, files of batches to the importer, several of both under way at a time.

The order of one file is kept: its batches' texts are durable before it is imported. Different files overlap, so that no
server waits for another's disk. An import goes on where it was after a crash, also one of this program.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
from msgspec import structs

from atoll.ipc.future import Future
from atoll.servers.importer.interface import Imported, Importer, Left
from atoll.servers.storage.interface import BlobRef, Storage

from .interface import Batch, BatchExists, Feedback, Receipt
from .reviews import Submission

IN_FLIGHT = 6
"""Batches whose texts are on their way to storage at most."""
FILE = 24
"""Batches of a file: a few steps of its import, and a few files of the whole."""


class Submitted(NamedTuple):
    """What was put in."""

    batches: list[str]
    """Under which ids they are there."""
    repeated: int
    """Batches that the store held already, from an earlier run."""
    renamed: int
    """Batches that an earlier run took back: submitted again under a further id."""
    refused: list[Left]
    reviews: int
    bytes: int
    """Of text."""
    seconds: float


class File(NamedTuple):
    """A file that is imported."""

    batches: dict[str, Batch]
    imported: Future[Imported]


def submit_all(
    storage: Storage,
    importer: Importer,
    feedback: Feedback,
    submissions: Iterable[Submission],
    advance: Callable[[int], None],
) -> Submitted:
    """Submit everything; `advance` is told the records of each file that is in. Raises what a call raises; what was
    durable by then stays, and what was begun is imported to its end.
    """
    began = time.monotonic()
    puts: deque[tuple[Batch, Future[list[BlobRef]]]] = deque()
    ready: dict[str, Batch] = {}
    files: deque[File] = deque()
    batches: list[str] = []
    refused: list[Left] = []
    size = reviews = repeated = renamed = 0

    def settle() -> None:
        """The first of the files."""
        nonlocal reviews, repeated, renamed
        file = files.popleft()
        done = file.imported.result()
        ids = {id: id for id in file.batches}
        for left in done.left:
            if left.why == "refused":
                refused.append(left)
                del ids[left.batch]
            else:
                ids[left.batch] = _submit_anew(feedback, file.batches[left.batch]).batch
                renamed += 1
        batches.extend(ids.values())
        repeated += done.before
        records = sum(len(file.batches[id].records) for id in ids)
        reviews += records
        advance(records)

    def begin() -> None:
        lines = [msgspec.json.encode(batch) + b"\n" for batch in ready.values()]
        files.append(File(ready.copy(), importer.bring_in.start(storage.put.now(lines))))
        ready.clear()
        while files and files[0].imported.done():
            settle()

    def forward() -> None:
        batch, put = puts.popleft()
        put.result()
        ready[batch.id] = batch
        if len(ready) == FILE:
            begin()

    for texts, batch in submissions:
        size += sum(map(len, texts))
        puts.append((batch, storage.put_many.start(texts)))
        if len(puts) > IN_FLIGHT:
            forward()
    while puts:
        forward()
    if ready:
        begin()
    while files:
        settle()
    return Submitted(
        batches=batches,
        repeated=repeated,
        renamed=renamed,
        refused=refused,
        reviews=reviews,
        bytes=size,
        seconds=time.monotonic() - began,
    )


def _submit_anew(feedback: Feedback, batch: Batch) -> Receipt:
    """Under the first further id that was not taken back as well: an id names one content for good. As bulk, like all
    that is imported."""
    number = 2
    while True:
        try:
            return feedback.with_(service="bulk").submit.now(
                structs.replace(batch, id=f"{batch.id}.{number}")
            )
        except BatchExists as exists:
            if exists.status != "rolled back":
                raise
        number += 1
