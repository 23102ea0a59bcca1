"""What others may ask of the feedback server.

A batch is the unit of submission: it is stored whole or not at all, and taken back whole. Its id is the
client's choice and makes a submission safe to repeat. A training set is read as of a moment, and stays
the same whatever comes or is taken back later. A moment is a revision (int), or a time that has passed in
seconds since the epoch (float), or now (None).
"""

from typing import Literal

from msgspec import Struct

from atoll.ipc.errors import Failure
from atoll.ipc.interface import Interface, call, stream
from atoll.ipc.system.state import Ahead, AsOf, Compacted, PinExists, StoreFull

from .records import Kind, Record, Said


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
    """A record, where it came from, and its place in the stream: resume after `position`. Where its rater was purged its
    texts are None, in sets of every moment."""

    position: int
    batch: str
    index: int
    record: Record
    trust: float
    """What the record counts for at that moment: its own trust, or its rater's where that is less."""
    revision: int
    """In which the batch was stored."""


class Source(Struct, frozen=True, array_like=True):
    """Where part of a row comes from: a record, who gave it, and the revision in which it was stored."""

    batch: str
    index: int
    rater: str
    revision: int


class Pair(Struct, frozen=True, array_like=True):
    """A preference drawn from two ratings of one task and one prompt. `trust` is the lesser of the two."""

    position: int
    prompt: Said
    chosen: Said
    rejected: Said
    margin: float
    trust: float
    chosen_from: Source
    rejected_from: Source


class Rater(Struct, frozen=True):
    """What this node knows of a rater, from the revision on in which it was written.

    It says nothing of what was claimed before: a set as of an earlier revision counts as it did then.
    """

    name: str
    trust: float = 1.0
    """The most that a record of this rater counts for, whenever it was submitted."""
    badge: int = 0
    """Whose capability alone may submit under this name, and under no other that is not given to it; 0:
    anybody's.
    """
    note: str = ""


class Kept(Struct, frozen=True):
    """A moment whose sets are held."""

    name: str
    revision: int
    why: str
    since: float
    """Seconds since the epoch."""


class Checked(Struct, frozen=True):
    """What `check` went through, and what it found: sentences, the first hundred of each."""

    batches: int
    records: int
    revision: int
    problems: list[str]
    """What must never be: a record that no index leads to, or two; a text that may be collected."""
    stray: list[str]
    """References in storage that no batch needs: a submission that was cut between its two steps, or is
    under way.
    """
    purged: int = 0
    """Records without texts, since their raters were purged: nobody can say any more whether they are what was
    submitted.
    """


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
    """By name, the first thousand."""
    revision: int
    further_tasks: int = 0
    """Tasks that `tasks` leaves out."""


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


class NoSuchTask(Failure, frozen=True, kw_only=True):
    """No batch has ever named this task: an empty set would hide a misspelt name."""

    task: str
    near: list[str]

    @property
    def message(self) -> str:
        hint = f" (did you mean {' or '.join(map(repr, self.near))}?)" if self.near else ""
        return f"no batch has the task {self.task!r}{hint}: `statistics` lists those there are"


class Feedback(Interface):
    """Human feedback. Rights: `submit`, `read`, `history` (read the past), `rollback`, `appoint` (say what is
    thought of a rater), `keep` (hold a moment, and let go of it).
    """

    errors = (Invalid, BatchExists, NoSuchBatch, NoSuchTask, Compacted, Ahead, PinExists, StoreFull)

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
        that fits it (by the trust that was claimed). At most `limit`, and about 512 KiB: go on after the
        last one until none come.
        """

    @stream("read", position=int)
    def records(self, selection: Selection = EVERYTHING, after: int = 0) -> Stored:
        """What stands now and fits the selection, as of one revision."""

    @stream("history", position=int)
    def training_set(self, task: str, as_of: AsOf = None, min_trust: float = 0.0, after: int = 0) -> Stored:
        """All records of a task as of a moment, in a fixed order: kind, band of trust, batch, index."""

    @stream("history", position=int)
    def draw_pairs(
        self,
        task: str,
        seed: int,
        count: int,
        as_of: AsOf = None,
        min_trust: float = 0.0,
        after: int = 0,
    ) -> Pair:
        """`count` different pairs of ratings of one prompt with different scores, each as likely as the
        next; the same for the same seed and moment, on any machine. Fewer only if there are fewer. Whoever was
        purged has no part in any: the draw is then among the others, and another one.
        """

    @call("history", idempotent=True, service="bulk")
    def agreement(self, task: str, as_of: AsOf = None) -> Agreement: ...

    @call("read", idempotent=True)
    def statistics(self) -> Statistics: ...

    @call("read", idempotent=True)
    def head(self) -> int:
        """The newest revision: what now means, to be written beside what was read."""

    @call("history", idempotent=True)
    def revision_at(self, time: float) -> int:
        """The revision that was the newest at a time that has passed, in seconds since the epoch."""

    @call("keep", idempotent=True)
    def keep(self, name: str, as_of: AsOf = None, why: str = "") -> Kept:
        """Hold the sets of a moment under a name: they are read as of its revision until `let_go`, whatever retention
        gives up. Repeated, it gives the moment that the name has; raises PinExists where another one was asked for.
        """

    @call("keep", idempotent=True)
    def let_go(self, name: str) -> None:
        """The sets of that moment are given up in time, where nothing else holds them. A name that holds nothing is no
        error."""

    @call("history", idempotent=True)
    def kept(self) -> list[Kept]: ...

    @call("history", idempotent=True, service="bulk")
    def check(self) -> Checked:
        """Go through all rows as of now: each batch's head, its records by every index, its texts."""

    @call("read", idempotent=True)
    def raters(self, after: str = "", limit: int = 1000) -> list[Rater]:
        """The raters of whom something is known, by name, from the one after `after`. At most `limit`, and about 512 KiB: go
        on after the last one until none come."""

    @call("appoint", idempotent=True)
    def appoint(self, rater: Rater) -> int:
        """Write what is known of a rater, in place of what was; returns the revision from which it holds."""
