"""What a server would offer that does not start."""

from atoll.ipc.interface import Interface, call


class Sulky(Interface):
    @call("look", idempotent=True)
    def pulse(self) -> int:
        """Nobody gets to ask."""
