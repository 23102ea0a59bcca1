"""What is told to a server that has a private keyspace by two names."""

from atoll.ipc import Interface, call


class Twice(Interface):
    @call("read", idempotent=True)
    def read(self, key: str, again: bool) -> str: ...
