"""Serves `Relay`; may pass on to another one, and may listen."""

import socket

from atoll.ipc.serve import Serves

from .interface import Relay


class Server(Serves[Relay]):
    further: Relay | None
    door: socket.socket | None

    @Relay.send.serve
    def send(self, text: str) -> None:
        return None
