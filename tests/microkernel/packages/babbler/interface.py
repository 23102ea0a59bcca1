from atoll.ipc import Interface, call


class Babbler(Interface):
    @call("use")
    def say(self, packets: list[bytes]) -> int:
        """Send packets to the kernel as they are; how many went."""

    @call("use")
    def write(self, lines: int, length: int) -> None:
        """Print so many lines."""
