"""A server that calls another one."""

from atoll.ipc.interface import Interface, call
from atoll.ipc.system.state import StoreFull


class Teller(Interface):
    errors = (StoreFull,)

    @call("ask", idempotent=True)
    def total(self, key: str) -> int:
        """What the counter says of a key."""

    @call("ask")
    def tell(self, key: str, by: int) -> int:
        """Have the counter add."""
