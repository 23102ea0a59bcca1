"""A server that calls another one."""

from atoll.ipc.interface import Interface, call


class Teller(Interface):
    @call("ask", idempotent=True)
    def total(self, key: str) -> int:
        """What the counter says of a key."""

    @call("ask", once=True)
    def tell(self, key: str, by: int) -> int:
        """Have the counter add."""
