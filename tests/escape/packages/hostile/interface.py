"""What a hostile server is told to try; each call answers with what came of it."""

from atoll.ipc.interface import Interface, call


class Hostile(Interface):
    @call("do")
    def attach(self, node: str) -> str:
        """Attach to the node from outside: `in`, or why not."""

    @call("do")
    def leave_behind(self, node: str) -> str:
        """Leave a process behind that attaches once this one is dead, and writes what came of it to `said`."""
