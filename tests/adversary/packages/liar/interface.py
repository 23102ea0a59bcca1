"""A server that breaks the protocol when it is asked to."""

from msgspec import Struct

from atoll.ipc.interface import Interface, call


class Forged(Struct):
    """What came of calls through capabilities that were never given, and of its own table."""

    tried: int
    turned_away: dict[str, int]
    """How many, by the error's name."""
    served: list[str]
    written: list[str]
    """Memory of the kernel's that it could write."""
    looked_at: int
    """Mappings of the kernel's tables and notices that it has, and tried."""


class Liar(Interface):
    @call("ask")
    def lie(self) -> None:
        """Answer with what no server may send."""

    @call("ask")
    def forge(self, slots: int) -> Forged:
        """Use the first so many slots and odd ones beyond, stale and coming generations, a right that it lacks; write
        its own table by way of /proc."""

    @call("ask")
    def accuse(self) -> None:
        """Say to the kernel that the caller broke the protocol, and answer nothing."""

    @call("ask")
    def babble(self) -> None:
        """Say to the kernel what no server may say."""
