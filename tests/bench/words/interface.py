from atoll.ipc import Interface, call


class Words(Interface):
    @call("write", once=True)
    def write(self, key: int, sealed: bool) -> int:
        """One row, sealed or plain."""

    @call("read", idempotent=True)
    def read(self, key: int, sealed: bool) -> int:
        """One row; gives the length of its text."""

    @call("read", idempotent=True)
    def scan(self, key: int, count: int, sealed: bool) -> int:
        """So many rows from a key on; gives how many there were."""
