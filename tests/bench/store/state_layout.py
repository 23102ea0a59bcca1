"""The rows that the `state` server writes for a transaction of one key, made by its own code.

docs/decisions/0002-store-layout.md argues for them. The work's values lie apart, so a transaction is three
rows: the key's version (history and index in one), the value, and the event with who, when and why.
"""

from collections.abc import Sequence

from atoll.servers.state import layout
from atoll.servers.state.engine import Batch, Table

from . import work
from .work import Layout, Rows, Transaction

KEYSPACE = 7
TIME = 1_800_000_000_000_000_000
TABLES = (
    work.Table("versions", append=False),
    work.Table("values", append=True),
    work.Table("events", append=True),
)


def _rows(group: Sequence[Transaction]) -> Sequence[Rows]:
    batch = Batch()
    for revision, name, value in group:
        key = layout.prefix(KEYSPACE) + name
        layout.put_version(batch, key, value, revision, 0)
        entry = layout.Entry(KEYSPACE, "State.commit", 0, "", b"", b"", [key])
        batch.append(revision, layout.event(TIME, entry))
    events = [(layout.pack(position), event) for position, event in batch.events]
    return sorted(batch.puts[Table.VERSIONS]), batch.puts.get(Table.VALUES, []), events


STATE = Layout(TABLES, _rows)
