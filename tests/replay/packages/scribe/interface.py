"""Every way to write a line."""

from atoll.ipc import Interface, call


class Scribe(Interface):
    @call("write")
    def write(self, text: str) -> None: ...
