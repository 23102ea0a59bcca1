"""What an author and a client see of durable methods."""

from typing import assert_type, reveal_type

from atoll.ipc import Deferred, Interface, Keyspace, Serves, call
from atoll.ipc.durable import Retry, Start, Workflow, durable


class Ledger(Interface):
    @durable("write")
    def move(self, source: str, target: str, amount: int = 1) -> list[int]: ...

    @call("write", once=True)
    def note(self, text: str) -> float: ...


class Server(Serves[Ledger]):
    rows: Keyspace[int]
    other: Ledger

    @Ledger.move.serve
    async def move(self, flow: Workflow, source: str, target: str, amount: int = 1) -> list[int]:
        reveal_type(await flow.step(self.take, source, amount))  # reveals: int
        reveal_type(await flow.step(self.look, target))  # reveals: str
        reveal_type(await flow.step(self.give, target, amount=amount))  # reveals: bool
        reveal_type(await flow.step(self.other.note, "x"))  # reveals: float
        reveal_type(await flow.with_(retry=Retry(attempts=3)).step(self.look, target))  # reveals: str
        await flow.step(self.take, source, "much")  # error
        await flow.step(self.look)  # error
        await flow.step(self.other.note, 3)  # error
        return [amount]

    @Ledger.note.serve
    async def note(self, text: str) -> float:
        return 1.0

    def take(self, key: str, amount: int) -> Deferred[int]:
        return self.rows.update(key, lambda before: (before or 0) - amount)

    def look(self, key: str) -> str:
        return key

    async def give(self, key: str, *, amount: int) -> bool:
        return amount > 0


class Wrong(Serves[Ledger]):
    @Ledger.move.serve  # error
    async def without_workflow(self, source: str, target: str, amount: int = 1) -> list[int]:
        return []

    @Ledger.move.serve  # error
    async def other_result(self, flow: Workflow, source: str, target: str, amount: int = 1) -> int:
        return 1


async def client(ledger: Ledger) -> None:
    assert_type(await ledger.move("a", "b"), list[int])
    reveal_type(ledger.move.now("a", "b", 3))  # reveals: list[int]
    reveal_type(ledger.move.start("a", "b"))  # reveals: Future[list[int]]
    reveal_type(await ledger.move.begin(Start(id="x"), "a", "b"))  # reveals: str
    reveal_type(ledger.move.result.now("x"))  # reveals: list[int]
    reveal_type(await ledger.move.cancel("x"))  # reveals: None
    ledger.move.now("a")  # error
    ledger.move.begin.now("x", "a", "b")  # error
    ledger.move.begin.now(Start(), "a", 3)  # error
    ledger.move.result.now(3)  # error
    ledger.note.begin("x")  # error
