"""What a server would offer that leaves as it starts."""

from atoll.ipc.interface import Interface, call


class Leaving(Interface):
    @call("look", idempotent=True)
    def pulse(self) -> int:
        """Nobody gets to ask."""
