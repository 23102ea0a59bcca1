"""Between the capability tree and its rows: what a change of the tree writes, and what a boot reads back."""

from collections.abc import Iterable

from atoll.ipc.system.records import CapabilityRow, SessionRow

from .capabilities import Capability, Ended
from .changes import Batch


def row_of(capability: Capability) -> CapabilityRow:
    return CapabilityRow(
        id=capability.id,
        parent=capability.parent,
        holder=capability.holder,
        server=capability.server,
        interface=capability.interface,
        badge=capability.badge,
        rights=tuple(sorted(capability.rights)),
        expiry=capability.expiry,
        account=capability.account,
    )


def capability_of(row: CapabilityRow) -> Capability:
    """A lasting capability, as yet without a slot."""
    return Capability(
        id=row.id,
        parent=row.parent,
        holder=row.holder,
        server=row.server,
        interface=row.interface,
        badge=row.badge,
        rights=frozenset(row.rights),
        expiry=row.expiry,
        lasting=True,
        account=row.account,
    )


def write_made(batch: Batch, *made: Capability) -> Batch:
    """The rows of new or changed capabilities; session capabilities have none of their own (see
    `session_row`).
    """
    return batch.put(*(row_of(capability) for capability in made if capability.lasting))


def write_ended(batch: Batch, ended: Ended) -> Batch:
    """Deletes the rows of what ended and rewrites those that moved."""
    for capability in ended.gone:
        if capability.lasting:
            batch.delete(CapabilityRow, capability.id)
    return write_made(batch, *ended.moved)


def session_row(
    boot: int, sequence: int, time: int, began: Iterable[Capability], ended: Iterable[Capability]
) -> SessionRow:
    """One batch of the record of session capabilities."""
    return SessionRow(
        boot=boot,
        sequence=sequence,
        time=time,
        began=tuple(row_of(capability) for capability in began if not capability.lasting),
        ended=tuple(capability.id for capability in ended if not capability.lasting),
    )
