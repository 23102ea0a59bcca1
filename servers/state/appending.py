"""Rows that are added and never changed: what holds for a holder of the right `append`.

A key is new if the keyspace has no version of it, a deletion included. That is looked up here, so that whoever tries to
write over a row is told so, and it is recorded; and it is a precondition of the commit (`NEVER`), for what comes meanwhile.
"""

from hashlib import blake2b

from atoll.ipc.context import current
from atoll.ipc.errors import BadRequest, Conflict, NotAllowed
from atoll.ipc.system.state import NEVER, Committed

from . import layout
from .engine import Snapshot
from .history import Names
from .versions import newest, time_of

Rows = list[tuple[bytes, bytes | None]]
"""Absolute keys and values."""


def keys(rows: Rows) -> list[bytes]:
    """The keys of what is appended. Raises `BadRequest` where that deletes, or writes a key twice."""
    found = [key for key, value in rows if value is not None]
    if len(found) < len(rows):
        raise BadRequest("append: writes", "a value of each row", "a deletion")
    if len(set(found)) < len(found):
        raise BadRequest("append: writes", "each key once", "a key twice")
    return found


def id_of(id: bytes) -> bytes:
    """An id as the store knows it. Those of whoever may not write are apart: ids can be guessed, and what commits under one
    that is known writes nothing."""
    if not id or "write" in current().rights:
        return id
    return blake2b(id, digest_size=32, person=b"append").digest()


def there(snapshot: Snapshot, rows: Rows, names: Names) -> dict[bytes, int]:
    """By key the revisions of these very rows, as a call that is delivered again finds them; empty where their keys are new.

    Raises `NotAllowed` where another row is there; `Conflict` for a caller who could write over it."""
    revisions: dict[bytes, int] = {}
    for key, value in rows:
        row = newest(snapshot, key, layout.LAST)
        if row is None:
            continue
        revisions[key] = layout.revision_of(row[0])
        if layout.value_of(snapshot, *row) != value:
            raise _refusal(key, revisions[key], names)
    if revisions and len(revisions) < len(rows):
        raise _refusal(*next(iter(revisions.items())), names)
    return revisions


def appended(snapshot: Snapshot, revisions: dict[bytes, int]) -> Committed:
    """What appended rows that are there."""
    last = max(revisions.values())
    return Committed(last, time_of(snapshot, last), None, True)


def _refusal(key: bytes, revision: int, names: Names) -> NotAllowed | Conflict:
    name, held = key[layout.KEYSPACE_SIZE :], current().rights
    if "write" in held:
        return Conflict(name, NEVER, revision, names(layout.keyspace_of(key)))
    return NotAllowed(
        f"State.append of {name!r}, written at revision {revision}: to write over it",
        "write",
        tuple(sorted(held)),
    )
