"""What the benchmark calls. `exchange` carries the very payload that the peers carry (payload.py)."""

from atoll.ipc.buffer import Buffer
from atoll.ipc.interface import Interface, call, stream


class Echo(Interface):
    @call("call", idempotent=True)
    def exchange(self, number: int, text: str) -> str:
        """64 bytes each way, by a plain handler."""

    @call("call", idempotent=True)
    def exchange_async(self, number: int, text: str) -> str:
        """The same by an async handler, a task a call."""

    @stream("call")
    def items(self, count: int) -> str:
        """So many items of 64 bytes, by a plain generator."""

    @stream("call")
    def items_singly(self, count: int) -> str:
        """The same by an async generator: one item a record."""

    @call("call", local=True)
    def read(self, buffer: Buffer) -> int:
        """Reads a granted buffer in full into memory of its own; returns its size."""

    @call("call", local=True)
    def hold(self, buffer: Buffer) -> int:
        """Is handed a granted buffer and does not look into it; returns its size."""

    @call("call")
    def count(self) -> int:
        """How often this was called; a swap hands it over."""
