from atoll.ipc import Interface, call
from atoll.ipc.durable import durable


class Chores(Interface):
    @durable("do")
    def tidy(self, room: int) -> int:
        """Two steps, each of which writes a row."""

    @call("do", idempotent=True)
    def tidied(self, room: int) -> int: ...
