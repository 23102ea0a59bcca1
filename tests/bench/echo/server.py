"""The handlers: as little as can be, since what is measured is the way to them."""

from collections.abc import AsyncIterator, Iterator

from atoll.ipc.buffer import Buffer
from atoll.ipc.serve import Serves

from .interface import Echo

REPLY = "x" * 62


class Server(Serves[Echo]):
    def __init__(self) -> None:
        self._private = memoryview(bytearray())
        self._counted = 0

    def hand_over(self) -> bytes:
        return str(self._counted).encode()

    def take_over(self, state: bytes) -> None:
        self._counted = int(state)

    @Echo.exchange.serve
    def exchange(self, number: int, text: str) -> str:
        return REPLY

    @Echo.exchange_async.serve
    async def exchange_async(self, number: int, text: str) -> str:
        return REPLY

    @Echo.items.serve
    def items(self, count: int) -> Iterator[str]:
        for _ in range(count):
            yield REPLY

    @Echo.items_singly.serve
    async def items_singly(self, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            yield REPLY

    @Echo.read.serve
    def read(self, buffer: Buffer) -> int:
        view = buffer.view
        if len(self._private) != len(view):
            self._private = memoryview(bytearray(len(view)))
        self._private[:] = view  # one copy: a bytearray itself would make another one of the view first
        return len(view)

    @Echo.hold.serve
    def hold(self, buffer: Buffer) -> int:
        return len(buffer)

    @Echo.count.serve
    def count(self) -> int:
        self._counted += 1
        return self._counted
