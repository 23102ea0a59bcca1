from atoll.ipc import Interface, call
from atoll.ipc.durable import durable


class Steps(Interface):
    @durable("run")
    def run(self, steps: int) -> int:
        """A workflow of so many steps, each of which writes one row."""

    @call("run", once=True)
    def write(self, key: int) -> int:
        """A plain call that writes one row."""
