"""What others may ask of the feedback server.

A batch is the unit of submission: it is stored whole or not at all, and taken back whole. Its id is the
client's choice and makes a submission safe to repeat. A training set is read as of a revision, and stays
the same whatever comes or is taken back later.
"""

from typing import Literal

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream
from atoll.ipc.system.state import Ahead, Compacted, StoreFull

from .records import Kind, Record, Text


class Batch(Struct, frozen=True):
    """Records that belong together. `id` and each task are names: letters, digits and `._:-`, 64
    characters at most.
    """

    id: str
    records: list[Record]
    note: str = ""


class Receipt(Struct, frozen=True):
    """A batch is durable; `revision` is the first at which it is seen. `repeated`: an earlier submission
    had stored it.
    """

    batch: str
    revision: int
    records: int
    repeated: bool


class RolledBack(Struct, frozen=True):
    """The batch is not seen from `revision` on. `repeated`: it had been taken back before."""

    batch: str
    revision: int
    records: int
    repeated: bool


class Group(Struct, frozen=True, array_like=True):
    """Records of a batch that share task, kind and band of trust (tenths)."""

    task: str
    kind: Kind
    band: int
    records: int


class BatchInfo(Struct, frozen=True):
    id: str
    status: Literal["stored", "rolled back"]
    records: int
    groups: list[Group]
    submitted: float
    """Seconds since the epoch."""
    badge: int
    """Whose capability submitted it."""
    note: str
    reason: str = ""
    """Why it was taken back."""
    revision: int = 0
    """Of its last change."""


class Selection(Struct, frozen=True):
    """Which batches or records are meant; what is left empty does not restrict."""

    batch: str = ""
    task: str = ""
    kind: Kind | Literal[""] = ""
    min_trust: float = 0.0


EVERYTHING = Selection()


class Stored(Struct, frozen=True, array_like=True):
    """A record, where it came from, and its place in the stream: resume after `position`."""

    position: int
    batch: str
    index: int
    record: Record


class Pair(Struct, frozen=True, array_like=True):
    """A preference drawn from two ratings of one task. `trust` is the lesser of the two raters'."""

    position: int
    chosen: Text
    rejected: Text
    margin: float
    trust: float
    chosen_from: tuple[str, int]
    """Batch and index of the rating."""
    rejected_from: tuple[str, int]


class Agreement(Struct, frozen=True):
    """How far raters agree on what more than one of them rated.

    `alpha` is Krippendorff's (interval metric): 1 perfect, 0 as by chance, None where nothing can be
    compared or nothing varies. `same_order` is the share of pairs of raters of one preference that prefer
    the same answer.
    """

    task: str
    items: int
    ratings: int
    alpha: float | None
    compared: int
    """Preferences that more than one rater gave."""
    same_order: float | None


class TaskCount(Struct, frozen=True):
    task: str
    kinds: dict[str, int]
    bands: list[int]
    """Records per band of trust, lowest first."""


class Statistics(Struct, frozen=True):
    batches: int
    rolled_back: int
    records: int
    tasks: list[TaskCount]
    revision: int


class Invalid(Failure, frozen=True, kw_only=True):
    """A record of the batch is wrong; nothing of the batch was stored. `index` is -1 where the batch
    itself is wrong.
    """

    index: int
    field: str
    expected: str
    got: str

    @property
    def message(self) -> str:
        where = f"$.records[{self.index}].{self.field}" if self.index >= 0 else f"$.{self.field}"
        told = f"expected {self.expected}, got {self.got} - at `{where}`"
        return f"{told}; nothing of the batch was stored: mend it and submit it again"


class BatchExists(Failure, frozen=True, kw_only=True):
    """Another batch has this id, with other content; or it had, and was taken back."""

    batch: str
    status: str

    @property
    def message(self) -> str:
        return (
            f"batch {self.batch!r} is already {self.status}: expected a new id, or a stored batch's very same"
            " records; choose another id"
        )


class NoSuchBatch(Failure, frozen=True, kw_only=True):
    batch: str

    @property
    def message(self) -> str:
        return f"no batch has the id {self.batch!r}: `batches` lists those there are"


class Feedback(Interface):
    """Human feedback. Rights: `submit`, `read`, `history` (read the past), `rollback`."""

    errors = (Invalid, BatchExists, NoSuchBatch, Compacted, Ahead, StoreFull)

    @call("submit", idempotent=True)
    def submit(self, batch: Batch) -> Receipt:
        """Store a batch whole, in one transaction, or raise Invalid (naming record and field) and store
        nothing.
        """

    @call("rollback", idempotent=True)
    def rollback(self, batch: str, reason: str) -> RolledBack:
        """Take a batch back by a new transaction. Sets of earlier revisions go on to hold it."""

    @call("read", idempotent=True)
    def batch(self, id: str) -> BatchInfo: ...

    @call("read", idempotent=True)
    def batches(
        self, selection: Selection = EVERYTHING, after: str = "", limit: int = 100
    ) -> list[BatchInfo]:
        """Batches by id, from the one after `after`; a selection keeps those with at least one record
        that fits it.
        """

    @stream("read", position=int)
    def records(self, selection: Selection = EVERYTHING, after: int = 0) -> Stored:
        """What stands now and fits the selection, as of one revision."""

    @stream("history", position=int)
    def training_set(
        self, task: str, as_of: int | None = None, min_trust: float = 0.0, after: int = 0
    ) -> Stored:
        """All records of a task as of a revision (None: now), in a fixed order: kind, band of trust,
        batch, index.
        """

    @stream("history", position=int)
    def draw_pairs(
        self,
        task: str,
        seed: int,
        count: int,
        as_of: int | None = None,
        min_trust: float = 0.0,
        after: int = 0,
    ) -> Pair:
        """`count` different pairs of ratings with different scores, each as likely as the next; the same
        for the same seed and revision, on any machine. Fewer only if there are fewer.
        """

    @call("history", idempotent=True, service="bulk")
    def agreement(self, task: str, as_of: int | None = None) -> Agreement: ...

    @call("read", idempotent=True)
    def statistics(self) -> Statistics: ...
