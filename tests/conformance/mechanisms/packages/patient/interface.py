"""What a server offers that is there to be started and ended."""

from atoll.ipc.interface import Interface, call


class Patient(Interface):
    @call("look", idempotent=True)
    def pulse(self) -> int:
        """One if it lives."""
