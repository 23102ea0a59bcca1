"""Workflows that end, and are kept for a moment."""

from atoll.ipc import Deferred, Keyspace, Serves
from atoll.ipc.durable import Workflow

from .interface import Chores


class Server(Serves[Chores]):
    rows: Keyspace[int]

    workflows_kept = 1.0

    @Chores.tidy.serve
    async def tidy(self, flow: Workflow, room: int) -> int:
        await flow.step(self.count, f"sweep {room}")
        return await flow.step(self.count, f"dust {room}")

    def count(self, what: str) -> Deferred[int]:
        return self.rows.update(what, lambda before: (before or 0) + 1)

    @Chores.tidied.serve
    def tidied(self, room: int) -> int:
        return self.rows.local.get(f"dust {room}", 0)
