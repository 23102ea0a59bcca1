"""What simulated clients call."""

from msgspec import Struct

from atoll.ipc.durable import durable
from atoll.ipc.interface import Interface, call, stream
from atoll.ipc.system.state import StoreFull


class Tick(Struct):
    number: int


class Counter(Interface):
    errors = (StoreFull,)

    @call("read", idempotent=True)
    def get(self, key: str) -> int:
        """The value as the server's view has it."""

    @call("write", once=True)
    def add(self, key: str, by: int = 1) -> int:
        """Durable once it answers."""

    @durable("write")
    def gather(self, key: str, steps: int) -> int:
        """So many steps, each of which adds one to a key of its own."""

    @call("write", idempotent=True)
    def muse(self, seconds: float) -> int:
        """An async handler that takes so long, then says its version."""

    @call("write")
    def moody(self) -> int:
        """Neither idempotent nor once."""

    @stream("read", position=int)
    def ticks(self, after: int = 0) -> Tick:
        """Numbers that follow `after`."""
