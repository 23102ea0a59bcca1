"""Waits to be told to end."""

from atoll.ipc.serve import Serves

from .interface import Patient


class Server(Serves[Patient]):
    @Patient.pulse.serve
    def pulse(self) -> int:
        return 1
