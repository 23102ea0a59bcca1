"""The main job's long part: texts into storage, batches into feedback, several of both under way at a time.

The order of one submission is kept: its texts are durable before its batch is sent. Different
submissions overlap, so that neither server waits for the other's disk.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import structs

from atoll.ipc.future import Future
from atoll.servers.storage.interface import BlobRef, Storage

from .interface import Batch, BatchExists, Feedback, Receipt
from .reviews import Submission

IN_FLIGHT = 6
"""Submissions on their way to each of the two servers at most."""


class Submitted(NamedTuple):
    """What was put in. `repeated`: batches that the store held already, from an earlier run."""

    receipts: list[Receipt]
    repeated: int
    renamed: int
    """Batches that an earlier run took back: submitted again under a further id."""
    reviews: int
    bytes: int
    """Of text."""
    seconds: float


def submit_all(
    storage: Storage,
    feedback: Feedback,
    submissions: Iterable[Submission],
    advance: Callable[[int], None],
) -> Submitted:
    """Submit everything; `advance` is told the records of each batch that is durable. Raises what a call
    raises; what was durable by then stays.
    """
    began = time.monotonic()
    puts: deque[tuple[Batch, Future[list[BlobRef]]]] = deque()
    submits: deque[tuple[Batch, Future[Receipt]]] = deque()
    receipts: list[Receipt] = []
    size = renamed = 0

    def settle() -> None:
        nonlocal renamed
        batch, future = submits.popleft()
        try:
            receipt = future.result()
        except BatchExists as exists:
            if exists.status != "rolled back":
                raise
            receipt = _submit_anew(feedback, batch)
            renamed += 1
        receipts.append(receipt)
        advance(receipt.records)

    def forward() -> None:
        batch, put = puts.popleft()
        put.result()
        submits.append((batch, feedback.submit.start(batch)))
        if len(submits) > IN_FLIGHT:
            settle()

    for texts, batch in submissions:
        size += sum(map(len, texts))
        puts.append((batch, storage.put_many.start(texts)))
        if len(puts) > IN_FLIGHT:
            forward()
    while puts:
        forward()
    while submits:
        settle()
    return Submitted(
        receipts=receipts,
        repeated=sum(receipt.repeated for receipt in receipts),
        renamed=renamed,
        reviews=sum(receipt.records for receipt in receipts),
        bytes=size,
        seconds=time.monotonic() - began,
    )


def _submit_anew(feedback: Feedback, batch: Batch) -> Receipt:
    """Under the first further id that was not taken back as well: an id names one content for good."""
    number = 2
    while True:
        try:
            return feedback.submit.now(structs.replace(batch, id=f"{batch.id}.{number}"))
        except BatchExists as exists:
            if exists.status != "rolled back":
                raise
        number += 1
