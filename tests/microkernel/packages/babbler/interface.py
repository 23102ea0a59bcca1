from atoll.ipc import Interface, call


class Babbler(Interface):
    @call("use")
    def say(self, packets: list[bytes]) -> int:
        """Send packets to the kernel as they are; how many went."""

    @call("use")
    def hand(self, packet: bytes, memory: str) -> None:
        """Send one that memory of this name goes with."""

    @call("use")
    def write(self, lines: int, length: int) -> None:
        """Print so many lines."""
