"""A server that breaks the protocol when it is asked to."""

from atoll.ipc.interface import Interface, call


class Liar(Interface):
    @call("ask")
    def lie(self) -> None:
        """Answer with what no server may send."""

    @call("ask")
    def accuse(self) -> None:
        """Say to the kernel that the caller broke the protocol, and answer nothing."""

    @call("ask")
    def babble(self) -> None:
        """Say to the kernel what no server may say."""
