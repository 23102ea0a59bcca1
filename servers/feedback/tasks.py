"""The tasks that have a row, at the revisions at which a batch of theirs expects them to be still."""

from collections.abc import Iterable, Iterator

from atoll.ipc.keyspace import Keyspace
from atoll.ipc.transaction import Transaction

from .rows import Known, Row, task_key


class Tasks:
    """What is known of them. It may be behind, since a roll-back of the keyspace takes rows: then what rests on it meets a
    Conflict, and `learn` asks the store."""

    def __init__(self, rows: Keyspace[Row]) -> None:
        self._rows = rows
        self._revisions: dict[str, int] = {}

    def __contains__(self, task: str) -> bool:
        return task in self._revisions

    def __iter__(self) -> Iterator[str]:
        return iter(self._revisions)

    async def load(self) -> None:
        async for row in self._rows.range("task/", "task0"):
            self._revisions[row.key.removeprefix("task/")] = row.revision

    async def learn(self, task: str) -> bool:
        """Ask the store. Gives whether it is there."""
        row = await self._rows.row(task_key(task))
        if row and row.revision:
            self._revisions[task] = row.revision
        else:  # one without a revision is in a transaction that is not committed
            self._revisions.pop(task, None)
        return row is not None

    def write(self, tx: Transaction[Row], tasks: Iterable[str]) -> list[str]:
        """Have all of them there when it is committed. Gives those that it writes."""
        new = list[str]()
        for task in tasks:
            if task in self._revisions:
                tx.expect(task_key(task), self._revisions[task])
            else:
                tx.put(task_key(task), Known())
                new.append(task)
        return new

    def written(self, tasks: Iterable[str], revision: int) -> None:
        for task in tasks:
            self._revisions[task] = max(revision, self._revisions.get(task, 0))
