"""What the tests of a revocation call: a server that stands long between the check of a call and its handler."""

from atoll.ipc.interface import Interface, call, stream


class Threshold(Interface):
    """Each gives when its call left the window between check and handler: CLOCK_MONOTONIC, ns."""

    @call("read")
    def plain(self) -> int: ...

    @call("read")
    def task(self) -> int:
        """An async handler."""

    @stream("read")
    def streamed(self) -> int:
        """One item, of a handler that begins after a turn in trio's queue."""

    @call("write")
    def stand(self) -> None:
        """The next call does not leave its window."""
