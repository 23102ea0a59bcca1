"""Asks the counter."""

from atoll.ipc.interface import Interface, call
from atoll.ipc.serve import Serves
from atoll.ipc.system.state import StoreFull

from .interface import Teller


class Counter(Interface):
    """As much of the counter as it uses."""

    errors = (StoreFull,)

    @call("read", idempotent=True)
    def get(self, key: str) -> int: ...

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int: ...


class Server(Serves[Teller]):
    counter: Counter

    @Teller.total.serve
    async def total(self, key: str) -> int:
        return await self.counter.get(key)

    @Teller.tell.serve
    async def tell(self, key: str, by: int) -> int:
        return await self.counter.add(key, by)
