"""A server that was taken over, and would have its record say something else."""

from atoll.ipc import Interface, call


class Rewriter(Interface):
    @call("read", idempotent=True)
    def deed(self, what: str) -> None:
        """What it would like undone."""

    @call("write")
    def tries(self) -> dict[str, str]:
        """Every way to write over its record: by name what became of it."""

    @call("write")
    def note(self, key: str, text: str) -> None:
        """Adds a row to its own audit."""

    @call("write")
    def winds_back(self) -> None:
        """Has the kernel believe that nothing was put away yet, writes something else on the tape, and ends."""
