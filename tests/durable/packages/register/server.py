"""A second server: it counts what it is told, by a keyed call or within the caller's transaction."""

from atoll.ipc import Deferred, Keyspace, Serves

from .interface import Register


class Server(Serves[Register]):
    rows: Keyspace[int]

    @Register.note.serve
    def note(self, key: str) -> Deferred[int]:
        return self.rows.update(key, lambda before: (before or 0) + 1)

    @Register.enter.serve
    def enter(self, key: str) -> Deferred[int]:
        return self.rows.update(key, lambda before: (before or 0) + 1)

    @Register.counts.serve
    async def counts(self) -> dict[str, int]:
        return {row.key: row.value or 0 async for row in self.rows.range()}
