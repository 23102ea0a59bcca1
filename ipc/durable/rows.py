"""The rows of workflows, and where they lie: in the keyspace of the server that runs them, under the SDK's own keys.

A workflow that has not ended lies under OPEN, one that has under DONE, so that a start looks at the former only. Its
steps lie beside it, one row a step, under its name and the step's number. A workflow's *name* is the badge of the
capability by which it was begun and the id that it was given: two objects of one server do not share ids.
"""

import struct
from collections.abc import Iterator
from typing import Final, Literal

import msgspec
from msgspec import Struct

from atoll.ipc.errors import BadRequest
from atoll.ipc.local_view import RESERVED, after_prefix

_ROWS: Final = RESERVED + b"workflow/"
OPEN: Final = _ROWS + b"open/"
DONE: Final = _ROWS + b"done/"
_STEPS: Final = _ROWS + b"step/"
_UNIQUE: Final = _ROWS + b"unique/"
_QUEUES: Final = _ROWS + b"queue/"
ID_MOST: Final = 128
"""Bytes of a workflow's id, a queue's name and a deduplication key at most."""
LONGEST: Final = 10 * 366 * 86400.0
"""Seconds for which a workflow waits at most, to begin or at a timer: ten years. What is more is a mistake in a unit, and
not everybody's clock can say when it ends."""
_number = struct.Struct(">I")

Status = Literal["queued", "running", "waiting", "parked", "completed", "failed", "cancelled"]
ENDED: Final[frozenset[Status]] = frozenset({"completed", "failed", "cancelled"})


class WorkflowRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One workflow. Times are seconds since the epoch."""

    id: str
    badge: int
    """Of the capability by which it was begun."""
    method: str
    """The durable method, as `Interface.method`."""
    arguments: bytes
    """As they travel."""
    status: Status
    """`waiting`: for a version of the server that may go on with it; `parked`: until somebody looks at `reason`."""
    version: str
    """Of the server's package, by which its steps are run."""
    token: bytes
    """16 random bytes that the keys and the chance of its steps are made of."""
    begun: float
    rights: tuple[str, ...] = ()
    trace: int = 0
    executor: bytes = b""
    """The process that wrote this row; empty: a program outside of the server, which asks it to look."""
    runs: int = 0
    """How often it was taken up: what an earlier one commits late is refused, since this row has changed."""
    queue: str = ""
    priority: int = 0
    due: float = 0.0
    """Not before this time."""
    deduplication: str = ""
    started: float = 0.0
    ended: float = 0.0
    reason: str = ""
    reply: bytes | None = None
    fault: bytes | None = None
    forked: str = ""
    """The workflow that its first steps were taken from."""

    @property
    def name(self) -> str:
        return name_of(self.badge, self.id)

    def fruitless(self, run: int) -> int:
        """How often it was taken up since the run that wrote its last step. One that was resumed, or forked, counts anew."""
        return self.runs - run if run <= self.runs else self.runs


RUNS_MOST: Final = 100
"""So often in a row a workflow is taken up with nothing recorded of it; then it is parked, since it may be what ends its
server."""

StepState = Literal["trying", "sleeping", "done", "failed"]


class StepRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step. `trying`: an attempt has failed, and the next is due at `until`; `sleeping`: a timer that ends then."""

    name: str
    state: StepState
    run: int
    """The run of the workflow that wrote this; of one that waits, perhaps a later one that came as far."""
    ended: float
    attempts: int = 1
    until: float = 0.0
    reply: bytes | None = None
    fault: bytes | None = None


class QueueRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When the last workflows of a queue with a rate were started."""

    starts: list[float] = []


encode = msgspec.msgpack.Encoder().encode
_workflow = msgspec.msgpack.Decoder(WorkflowRow).decode
_step = msgspec.msgpack.Decoder(StepRow).decode
_queue = msgspec.msgpack.Decoder(QueueRow).decode


def name_of(badge: int, id: str) -> str:
    return f"{badge:x}/{id}"


def named(what: str, text: str, *, empty: bool = False) -> str:
    """An id, a queue's name or a key as callers may choose it. Raises `BadRequest`."""
    if (text or empty) and text.isprintable() and len(text.encode()) <= ID_MOST:
        return text
    raise BadRequest(what, f"{'at most' if empty else '1 to'} {ID_MOST} bytes of printable text", repr(text))


def open_key(name: str) -> bytes:
    return OPEN + name.encode()


def done_key(name: str) -> bytes:
    return DONE + name.encode()


def name_in(key: bytes) -> str:
    """The workflow's name in a key under OPEN or DONE; the two are as long."""
    return key[len(OPEN) :].decode()


def step_key(name: str, number: int) -> bytes:
    return _steps_of(name) + _number.pack(number)


def steps_between(name: str, first: int = 0) -> tuple[bytes, bytes]:
    """The range of a workflow's steps from a number on."""
    return step_key(name, first), after_prefix(_steps_of(name))


def number_in(key: bytes) -> int:
    """The number in a step's key."""
    return int(_number.unpack(key[-_number.size :])[0])


def unique_key(row: WorkflowRow) -> bytes:
    """Whose deduplication key is taken: a key is its object's, in a queue."""
    return _UNIQUE + f"{row.badge:x}/{row.queue}\0{row.deduplication}".encode()


def queue_key(queue: str) -> bytes:
    return _QUEUES + queue.encode()


def _steps_of(name: str) -> bytes:
    return _STEPS + name.encode() + b"\0"


def spans(*, ended: bool) -> Iterator[tuple[bytes, bytes]]:
    """Ranges of keys in which workflows lie."""
    yield OPEN, after_prefix(OPEN)
    if ended:
        yield DONE, after_prefix(DONE)


def workflow_of(value: bytes) -> WorkflowRow:
    return _workflow(value)


def step_of(value: bytes) -> StepRow:
    return _step(value)


def queue_of(value: bytes) -> QueueRow:
    return _queue(value)
