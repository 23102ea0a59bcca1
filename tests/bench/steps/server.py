"""The same row, written by a step of a workflow and by a plain call."""

from atoll.ipc import Deferred, Keyspace, Serves
from atoll.ipc.durable import Workflow

from .interface import Steps

ROWS = 1000


class Server(Serves[Steps]):
    rows: Keyspace[bytes]

    @Steps.run.serve
    async def run_(self, flow: Workflow, steps: int) -> int:
        for number in range(steps):
            await flow.step(self.put, number)
        return steps

    @Steps.write.serve
    def write(self, key: int) -> Deferred[int]:
        return self.rows.put(f"rating/{key % ROWS:08}", bytes(100)).then(lambda _: key)

    def put(self, number: int) -> Deferred[int]:
        return self.rows.put(f"rating/{number % ROWS:08}", bytes(100)).then(lambda _: number)
