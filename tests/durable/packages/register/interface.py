from atoll.ipc import Interface, call


class Register(Interface):
    @call("write", once=True)
    def note(self, key: str) -> int:
        """Counts it, once by the call's key."""

    @call("write")
    def enter(self, key: str) -> int:
        """Counts it, in the caller's transaction."""

    @call("read", idempotent=True)
    def reached(self, point: str) -> None:
        """Waits until somebody stays at the point."""

    @call("read", idempotent=True)
    def counts(self) -> dict[str, int]: ...
