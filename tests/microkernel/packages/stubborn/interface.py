"""What a server may do that does not want to end."""

from atoll.ipc.interface import Interface, call


class Stubborn(Interface):
    @call("act")
    def outlive(self) -> int:
        """Switch the parent-death signal off. The process as the host has it."""

    @call("act")
    def leave_child(self, program: bool) -> int:
        """Start a process in a session of its own: another program, or a fork of this one. Its number."""

    @call("act")
    def bomb(self) -> None:
        """Fork without end."""

    @call("act")
    def hoard(self) -> None:
        """Take memory without end."""

    @call("act")
    def stay(self) -> None:
        """A plain handler that never returns, in a process that ignores what can be ignored."""
