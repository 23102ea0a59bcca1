"""What others may ask of the importer: a file of batches into feedback, by a call that survives a crash.

A file is a blob in storage: lines of JSON, each a `Batch` of feedback's interface. The call is a workflow, and what it
keeps of it are rows: places, ids, counts, and sentences that name what was expected, never what a rater wrote.
"""

from typing import Literal, Self

from msgspec import Struct, structs

from atoll.ipc.durable import durable
from atoll.ipc.interface import Interface
from atoll.ipc.system.state import StoreFull
from atoll.servers.storage.interface import BlobRef, Corrupt, NoSuchBlob, WrongSize

MOST_LEFT = 100


class Left(Struct, frozen=True, array_like=True):
    """A line whose batch did not go in."""

    place: int
    """Of the line in the file, in bytes."""
    batch: str
    """Its id, where it has one."""
    why: Literal["taken back", "refused"]
    reason: str = ""
    """What was expected, and where in the batch."""


class Imported(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a file's batches. The same however often it was interrupted."""

    taken: int = 0
    """Batches that this import stored."""
    records: int = 0
    """In those."""
    before: int = 0
    """Batches that were stored, with the same records, when it came to them."""
    taken_back: int = 0
    """Batches that were stored once and taken back, by a roll-back: they stay so."""
    refused: int = 0
    """Lines that are no batch, or none that feedback takes."""
    revision: int = 0
    """As of which all that it stored is seen."""
    left: list[Left] = []
    """The first hundred of those that were taken back or refused, by place."""

    def and_then(self, more: "Imported") -> Self:
        """With what became of further batches."""
        return structs.replace(
            self,
            taken=self.taken + more.taken,
            records=self.records + more.records,
            before=self.before + more.before,
            taken_back=self.taken_back + more.taken_back,
            refused=self.refused + more.refused,
            revision=max(self.revision, more.revision),
            left=[*self.left, *more.left][:MOST_LEFT],
        )


class Importer(Interface):
    """Imports into feedback. Right: `import`. What is imported is submitted by the importer's own badge, whoever asked."""

    errors = (NoSuchBlob, WrongSize, Corrupt, StoreFull)

    @durable("import")
    def bring_in(self, file: BlobRef) -> Imported:
        """Submit each batch of the file once, in its order, eight a step. One that feedback refuses is counted, and the next
        follows. The file is kept until its import has ended.
        """
