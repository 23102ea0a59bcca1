"""What a relay offers, and what it calls: a relay."""

from atoll.ipc.interface import Interface, call


class Relay(Interface):
    @call("send")
    def send(self, text: str) -> None: ...
