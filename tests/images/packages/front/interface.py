"""What a front offers, `Relay`, and what it calls: a diary."""

from atoll.ipc.interface import Interface, call


class Relay(Interface):
    @call("send")
    def send(self, text: str) -> None: ...


class Diary(Interface):
    @call("write")
    def note(self, text: str) -> None: ...
